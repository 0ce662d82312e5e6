"""A cut by trained scores, and the scorer of a served model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from ...grid import Grid
from ..scorers.base import ScorerError
from ..scorers.stts.files import unfit
from ..scorers.stts.model import Scorer, key_bias, lone_frames
from ..scorers.stts.weights import STTS
from ..scorers.tower_shape import tower_shape
from .cut import Choose, Cut
from .key_bias import KeyBiasAttention

_LOG = logging.getLogger(__name__)


class TowerScorer:
    """A scorer and the attention that takes its bias; no module of the model, which loads its checkpoint alone.

    Attributes:
        scorer: float32, moved to the tower's device when it is first used.
        wide: the biased block's attention with wider heads.
    """

    def __init__(self, scorer: Scorer, block_attention: Any) -> None:
        from vllm.model_executor.layers.attention import MMEncoderAttention

        plain = block_attention.attn
        self.scorer = scorer
        self.wide = MMEncoderAttention(plain.num_heads, plain.head_size + KeyBiasAttention.EXTRA, plain.scale)

    @classmethod
    def of(cls, vllm_config: Any, attentions: Sequence[Any]) -> TowerScorer | None:
        """The scorer of a served model, None without one or with one that does not fit; the front end refuses then.

        Args:
            vllm_config: vLLM's.
            attentions: attention modules of the tower's blocks; none for a language model alone.
        """
        try:
            path = STTS.locate(vllm_config) if attentions else None
            return None if path is None else cls._fitting(path, vllm_config.model_config, attentions)
        except ScorerError as error:
            _LOG.warning("strategy 'stts' is off: %s", error)
            return None

    @classmethod
    def _fitting(cls, path: Path, model_config: Any, attentions: Sequence[Any]) -> TowerScorer | None:
        scorer, tower = STTS.load(path), tower_shape(model_config.hf_config)
        assert tower is not None
        if problem := unfit(scorer.shape, tower.width, tower.merge, len(attentions)):
            _LOG.warning("strategy 'stts' is off: the scorer %s does not fit: %s", path, problem)
            return None
        return cls(scorer, attentions[scorer.shape.after])


class ScoredCut(Cut):
    """Looks at pooled cells, scores them when all are known, biases one more block, and cuts behind it.

    Args:
        scorer: on the tower's device.
        grids, counts: the batch's items and their K.
        choose: from scores, float32 [cells], to the kept cells.
    """

    def __init__(self, scorer: Scorer, grids: Sequence[Grid], counts: Sequence[int], choose: Choose) -> None:
        super().__init__(scorer.shape.after, sum(counts), choose)
        self._scorer, self._grids, self._counts = scorer, grids, list(counts)
        self._scores: Tensor | None = None

    def look(self, cells: Tensor) -> Tensor:
        """Pooled cells, float32 [C, width]; see `Cut.look`."""
        return self._scorer.pool(cells)

    def bias(self, looked: Tensor) -> Tensor:
        """See `Cut.bias`."""
        self._scores = self._scorer.score(looked, self._grids)
        return key_bias(self._scores, self._grids, self._scorer.shape.rescale)

    def choose(self, looked: Tensor) -> Tensor:
        """See `Cut.choose`."""
        assert self._scores is not None
        return self._choose(self._scores)

    def context(self, kept: Tensor) -> Tensor:
        """See `Cut.context`: with refill, whole frames that packing would leave alone. Reads counts on the host."""
        if self._scorer.shape.refill == "off":
            return kept
        starts = accumulate((grid.tokens for grid in self._grids), initial=0)
        items = zip(kept.split(self._counts), self._grids, starts, strict=False)
        return torch.cat([_refilled(item_kept - start, grid) + start for item_kept, grid, start in items])


def _refilled(kept: Tensor, grid: Grid) -> Tensor:
    if grid.frames == 1:
        return kept
    alive = torch.zeros(grid.frames, grid.per_frame, dtype=torch.bool, device=kept.device)
    alive.view(-1)[kept] = True
    with gpu_sync_allowed():
        alive[lone_frames(alive.sum(1).tolist(), grid.per_frame)] = True
        return alive.flatten().nonzero().squeeze(1)
