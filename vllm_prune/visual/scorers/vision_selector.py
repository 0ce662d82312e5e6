"""VisionSelector's scorer (arXiv 2510.16598): what the average cell of an item would attend to, by two trained maps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import linear

from ...config.worker_facts import WorkerFacts
from ...grid import Grid
from .base import ScorerError, TrainedWeights
from .tower_shape import TowerShape

WEIGHTS = tuple(f"{name}_proj.{kind}" for name in ("q", "k") for kind in ("weight", "bias"))
PREFIX = "visual.importance_scorer."
"""In front of these names in a checkpoint that holds the scorer among the model's weights."""


class Selector:
    """score_i = q_i . mean_j k_j / sqrt(H) with q = Wq x and k = Wk x, which is the mean of row i of the attention
    logits (section 3.2) without its N x N matrix.

    Args:
        weights: float32 by their names in `WEIGHTS`; [H, D] and [H].
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self._weights = weights

    @property
    def width(self) -> int:
        """D, hidden size of the language model."""
        return int(self._weights["q_proj.weight"].shape[1])

    def score(self, cells: Tensor, grids: Sequence[Grid]) -> Tensor:
        """float32 [sum of M] from cells behind the merger, [sum of M, D]; see `CellScorer.score`."""
        self._weights = weights = {name: weight.to(cells.device) for name, weight in self._weights.items()}
        items = cells.float().split([grid.tokens for grid in grids])
        return torch.cat([_score(item, weights) for item in items])


def _score(item: Tensor, weights: dict[str, Tensor]) -> Tensor:
    queries = linear(item, weights["q_proj.weight"], weights["q_proj.bias"])
    mean_key = linear(item.mean(0), weights["k_proj.weight"], weights["k_proj.bias"])
    return queries @ mean_key / len(mean_key) ** 0.5


def load_selector(path: Path) -> Selector:
    """Read a safetensors file, or those of a folder: of the scorer alone, or a checkpoint that contains it.

    Raises:
        ScorerError: no such file, or weights missing.
    """
    weights: dict[str, Tensor] = {}
    for file in _files(path):
        try:
            with safe_open(file, "pt") as tensors:
                names = set(tensors.keys())
                for name in WEIGHTS:
                    for key in {name, PREFIX + name} & names:
                        weights[name] = tensors.get_tensor(key).float()
        except (OSError, SafetensorError) as error:
            raise ScorerError(f"{file} cannot be read: {error}") from None
    if missing := sorted(set(WEIGHTS) - set(weights)):
        raise ScorerError(f"{path} has no {', '.join(missing)}, also not behind {PREFIX}")
    return Selector(weights)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ScorerError(f"vision_selector.weights names {path}, which does not exist; correct the path or remove it")
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]


class SelectorWeights(TrainedWeights):
    """The weights that the configuration names."""

    strategy = "vision_selector"
    how_to_get = (
        "it needs trained weights: name a file or folder in the configuration (vision_selector: {weights: PATH}) and "
        "restart; or name another strategy"
    )

    def locate(self, vllm_config: Any) -> Path | None:
        """See `TrainedWeights.locate`."""
        configured = WorkerFacts.of(vllm_config).selector
        return None if configured is None else Path(configured)

    def unfit(self, path: Path, tower: TowerShape) -> str | None:
        """See `TrainedWeights.unfit`."""
        width = self.load(path).width
        if width == tower.out:
            return None
        return f"the weights are for a language model of hidden size {width}, and this one has {tower.out}"

    def load(self, path: Path) -> Selector:
        """See `TrainedWeights.load`; read once per process."""
        return _loaded(path)


_loaded = lru_cache(maxsize=2)(load_selector)
SELECTOR = SelectorWeights()
