"""The base class of visual strategies: from features and a grid to the visual tokens to keep.

A strategy has no access to the engine, the request or other items of the batch. The base class owns the guarantees
(exact count, ascending order, at least one token per frame, ties by index); a subclass says which cells matter more.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ...grid import Grid, Modality
from ...signals import VisualSignal
from ._reduction import Reduction as Reduction


class NoOptions(BaseModel):
    """Options of a strategy that has none, and the base of all others: any other key is refused, as is a NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TowerOptions(NoOptions):
    """Options of a strategy that can also choose inside the vision tower.

    Attributes:
        where: "embed" chooses among the tower's outputs. "tower" chooses earlier, by the mean hidden state of each
            visual token's patches, and runs the rest of the tower on the kept ones alone, which saves its time. "auto"
            chooses inside the tower where that can be done on this server, and behind it elsewhere.
        after: blocks of the tower that see every visual token, with "tower"; with 0 the choice is made on patch
            embeddings. By default 4, or all but one of a tower of fewer than five blocks.
    """

    where: Literal["embed", "tower", "auto"] = "embed"
    after: Annotated[int, Field(ge=0, le=128)] | None = None


@dataclass(frozen=True)
class Context:
    """What a strategy may look at beside the features.

    Attributes:
        seed: 63-bit number derived from the item's content and the model's name; equal for equal content.
        tower_attention: [M] float32, attention received by each cell in a late tower layer; only
            given to strategies whose `needs` name it.
        scores: [M] float32, what a trained scorer of the model gives each cell; likewise.
        sensitivity: [M] float32, how much the model's projector reacts to each cell; likewise.
        text: [L, D], the language model's embeddings of the last user message's text, L >= 1; likewise.
        network: the strategy's trained layers, a `Network` of `_trained`; likewise.
        unpooled: a video before the model pools its frames, `Frames` of `_frames`; likewise.
    """

    seed: int = 0
    tower_attention: Tensor | None = None
    scores: Tensor | None = None
    sensitivity: Tensor | None = None
    text: Tensor | None = None
    network: Any = None
    unpooled: Any = None


class Strategy(ABC):
    """Base of all visual strategies.

    Subclasses override `score` (pointwise importance) or `select_span` (when the choice of one cell
    depends on the others). Instances are immutable and hold validated options.

    Attributes:
        name: catalogue name, used in requests and metric labels.
        paper: citation with section or equation, or "ours".
        summary: one line for the catalogue table.
        modalities: kinds of media that it prunes.
        needs: signals that are captured only for strategies that declare them; see `wanted`.
        frame_split: how K is split over frames where the split has to be known before the tower runs.
        floor: whether every frame keeps at least one token when the count allows it.
        rewrites: whether trained layers compute what is left, so that it is no mean of the item's own rows.
        automatic: whether it can say by itself how many tokens to keep; then it has `PixelStrategy.needed_cells`.
        Options: pydantic model of the strategy's options.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    summary: ClassVar[str]
    modalities: ClassVar[frozenset[Modality]] = frozenset({"image", "video"})
    needs: ClassVar[frozenset[VisualSignal]] = frozenset()
    frame_split: ClassVar[Literal["even", "energy"]] = "even"
    floor: ClassVar[bool] = True
    rewrites: ClassVar[bool] = False
    automatic: ClassVar[bool] = False
    Options: ClassVar[type[BaseModel]] = NoOptions

    def __init__(self, options: BaseModel | None = None) -> None:
        self.options = options if options is not None else self.Options()

    def wanted(self) -> frozenset[VisualSignal]:
        """The signals that these options need; a subset of `needs`."""
        return self.needs

    def resized(self, grid: Grid, count: int) -> Grid | None:
        """The grid that an item is drawn smaller to before the processor; None where visual tokens are chosen from it.

        Args:
            grid: shape of the item.
            count: K, 1 <= K < M: the most visual tokens of the smaller grid.
        """
        return None

    def waits_for_device(self) -> bool:
        """Whether the host has to wait for the device, as sizes come from features."""
        return False

    def reduce(
        self, tokens: Tensor, grid: Grid, count: int, context: Context, per_frame: Sequence[int] | None = None
    ) -> Reduction:
        """Choose the cells to keep, and what becomes of the others; see `select`."""
        return Reduction(self.select(tokens, grid, count, context, per_frame))

    def select(
        self, tokens: Tensor, grid: Grid, count: int, context: Context, per_frame: Sequence[int] | None = None
    ) -> Tensor:
        """Choose the cells to keep.

        Args:
            tokens: [M, D] features after the merger, any float dtype, one row per cell in raster order.
            grid: shape of the item; `grid.tokens == M`.
            count: K, the exact number of cells to keep, 1 <= K <= M.
            context: see `Context`.
            per_frame: fixed counts per frame (sum K, zeros allowed) for model families that write text
                between frames; then the choice is made inside each frame.

        Returns:
            int64 [K] on the device of `tokens`, ascending and unique.

        Raises:
            ValueError: a count that does not fit the grid.
        """
        check_counts(len(tokens), grid, count, per_frame)
        if count == grid.tokens:
            return torch.arange(count, device=tokens.device)
        if per_frame is None:
            return self.select_span(tokens, grid, count, context).sort().values
        return self.select_frames(tokens, grid, per_frame, context)

    def select_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Tensor:
        """Choose `count` cells over the whole item; int64 [count], any order."""
        scores = self.score(tokens, grid, context)
        return best(scores, count, grid.frames if self.floor else 1)

    def select_frames(self, tokens: Tensor, grid: Grid, per_frame: Sequence[int], context: Context) -> Tensor:
        """Choose `per_frame[t]` cells inside each frame t; int64 [sum(per_frame)], ascending."""
        if type(self).score is Strategy.score:
            return self._spansframe_contexts(tokens, grid, per_frame, context)
        return best_per_frame(self.score(tokens, grid, context), per_frame)

    def _spansframe_contexts(self, tokens: Tensor, grid: Grid, per_frame: Sequence[int], context: Context) -> Tensor:
        frame = Grid(1, grid.rows, grid.cols)
        spans = [
            self.select_span(part, frame, n, frame_context(context, t, grid)).sort().values + t * grid.per_frame
            for t, (n, part) in enumerate(zip(per_frame, tokens.split(grid.per_frame), strict=True))
            if n
        ]
        return torch.cat(spans)

    def score(self, tokens: Tensor, grid: Grid, context: Context) -> Tensor:
        """Importance of each cell, float32 [M]; higher is kept first, ties go to the lower index."""
        raise NotImplementedError(f"{type(self).__name__} overrides neither score nor select_span")


@dataclass(frozen=True)
class Cells:
    """Pixel statistics of an item's visual tokens, taken in the front end before the tower runs.

    Attributes:
        digest: int64 [M], equal for cells with equal pixels (a random projection of the raw bytes).
        texture: float32 [M], standard deviation of the cell's pixels as a share of their full range.
    """

    digest: Tensor
    texture: Tensor


class PixelStrategy(Strategy):
    """A strategy that looks at pixels only: it runs in the front end, and the kept cells travel with the item.

    Attributes:
        across_items: whether earlier items of the same request change the choice; their content then
            belongs to the item's cache key.
    """

    needs = frozenset({"pixels"})
    across_items: ClassVar[bool] = False

    def score_cells(self, cells: Cells, grid: Grid, earlier: Sequence[Cells]) -> Tensor:
        """Importance of each cell, float32 [M]; `earlier` are the items before this one in the request."""
        raise NotImplementedError

    def needed_cells(self, cells: Cells, grid: Grid) -> Tensor:
        """Cells that are kept where the count is left to the strategy; int64, ascending and unique, at least one."""
        raise NotImplementedError

    def select_cells(
        self, cells: Cells, grid: Grid, count: int, earlier: Sequence[Cells], per_frame: Sequence[int] | None = None
    ) -> Tensor:
        """Choose from pixels; same contract as `Strategy.select`."""
        check_counts(len(cells.digest), grid, count, per_frame)
        if count == grid.tokens:
            return torch.arange(count, device=cells.digest.device)
        scores = self.score_cells(cells, grid, earlier)
        if per_frame is not None:
            return best_per_frame(scores, per_frame)
        return best(scores, count, grid.frames if self.floor else 1).sort().values

    def select_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Tensor:
        """Refuse: features say nothing about pixels."""
        raise NotImplementedError(f"{self.name} looks at pixels; use select_cells")


def frame_context(context: Context, frame: int, grid: Grid) -> Context:
    """What a strategy may look at in one frame."""
    inside = slice(frame * grid.per_frame, (frame + 1) * grid.per_frame)
    of_cells = {name: getattr(context, name) for name in ("tower_attention", "scores", "sensitivity")}
    of_frame = {name: values[inside] for name, values in of_cells.items() if values is not None}
    return replace(context, seed=context.seed + frame, **of_frame)


def check_counts(rows: int, grid: Grid, count: int, per_frame: Sequence[int] | None) -> None:
    """Refuse counts that do not fit an item of `rows` cells; see `Strategy.select`."""
    if not 1 <= count <= grid.tokens or rows != grid.tokens:
        raise ValueError(f"cannot keep {count} of {rows} tokens on a grid of {grid.tokens}")
    if per_frame is None:
        return
    if len(per_frame) != grid.frames or sum(per_frame) != count:
        raise ValueError(f"per-frame counts {list(per_frame)} do not sum to {count} over {grid.frames} frames")
    if min(per_frame) < 0 or max(per_frame) > grid.per_frame:
        raise ValueError(f"per-frame counts {list(per_frame)} do not fit frames of {grid.per_frame} cells")


def best_per_frame(scores: Tensor, per_frame: Sequence[int]) -> Tensor:
    """The `per_frame[t]` highest of [M] frame-major scores inside each frame; int64, ascending."""
    by_frame = scores.view(len(per_frame), -1)
    order = by_frame.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(by_frame.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    limits = to_device(torch.tensor(list(per_frame)), order.device)
    return places_of((rank < limits[:, None]).flatten(), sum(per_frame))


def best(scores: Tensor, count: int, frames: int) -> Tensor:
    """Indices of the `count` highest scores, int64 [count], ties to the lower index.

    When `count >= frames` the best cell of every frame comes first, so that no frame is lost
    (scores are [M], frame-major, M divisible by `frames`).
    """
    order = scores.argsort(descending=True, stable=True)
    if frames > 1 and count >= frames:
        per_frame = len(scores) // frames
        first = scores.view(frames, per_frame).argsort(dim=1, descending=True, stable=True)[:, 0]
        forced = first + torch.arange(frames, device=scores.device) * per_frame
        lifted = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        lifted[forced] = True
        order = torch.cat([forced, order[places_of(~lifted[order], len(order) - frames)]])
    return order[:count]


def places_of(mask: Tensor, count: int) -> Tensor:
    """Where a bool [M] mask holds, int64 [count], ascending. The count is the caller's, so no host waits for it."""
    return torch.nonzero_static(mask, size=count).squeeze(1)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device, without waiting for what runs there."""
    if device.type == "cpu":
        return tensor
    from vllm.utils.torch_utils import async_tensor_h2d

    return async_tensor_h2d(tensor, device=device)
