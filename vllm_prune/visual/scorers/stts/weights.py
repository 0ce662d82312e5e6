"""Which scorer of STTS belongs to a served model, for the front end and for the workers."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from ....config.worker_facts import WorkerFacts
from ..base import TrainedWeights
from ..tower_shape import TowerShape
from .files import PLACE, load, locate, read_shape, unfit
from .model import Scorer, Shape


class SttsWeights(TrainedWeights):
    """A safetensors file: the one that the configuration names, else the one beside the checkpoint."""

    strategy = "stts"
    how_to_get = (
        f"it needs a scorer trained for this model: put it at {PLACE} beside the checkpoint, or name it in the "
        "configuration (stts: {scorer: FILE}), and restart; or name another strategy"
    )

    def locate(self, vllm_config: Any) -> Path | None:
        """See `TrainedWeights.locate`."""
        model = vllm_config.model_config
        return locate(model.model, WorkerFacts.of(vllm_config).scorer, getattr(model, "revision", None))

    def unfit(self, path: Path, tower: TowerShape) -> str | None:
        """See `TrainedWeights.unfit`."""
        if tower.depth is None:
            return "the model's configuration does not say how many blocks its vision tower has"
        return unfit(_shape(path, path.stat().st_mtime_ns), tower.width, tower.merge, tower.depth)

    def load(self, path: Path) -> Scorer:
        """See `TrainedWeights.load`; without gradients, float32, on the CPU."""
        return load(path)


@lru_cache(maxsize=4)
def _shape(path: Path, modified: int) -> Shape:
    # A file that is replaced is read again.
    return read_shape(path)


STTS = SttsWeights()
