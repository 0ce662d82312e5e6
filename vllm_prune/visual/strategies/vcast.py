"""More of the frames in which a video turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ...grid import Grid
from ...shares import largest_remainder
from .base import Context, NoOptions, Strategy, best_per_frame
from .maths import unit_rows

_UNITS = 1 << 20


class VCastOptions(NoOptions):
    """Options of `vcast`.

    Attributes:
        temperature: of the softmax that makes shares of K from curvatures; the larger, the more even they are.
    """

    temperature: Annotated[float, Field(gt=0, le=100)] = 0.7


class VCast(Strategy):
    """V-CAST (arXiv 2603.27650): a budget per frame by curvature, and two anchors for the choice inside a frame.

    The unit mean tokens of the frames are points of a path; the curvature at a frame is one minus the cosine between
    the step into it and the step out of it, 1 at both ends. Each frame keeps one token, the rest of K goes by the
    softmax of the curvatures. Inside a frame, tokens rank by their distance (one minus the cosine) to the frame's mean
    plus their length, scaled to 0 to 1. What a full frame cannot take is shared by the others in proportion,
    and what rounding leaves over goes to the largest remainders; the authors' code gives all of it to one frame.
    """

    name = "vcast"
    paper = "V-CAST, arXiv 2603.27650, as in the authors' code"
    summary = "more of the frames in which a video turns; inside a frame, long visual tokens far from its mean"
    modalities = frozenset({"video"})
    Options = VCastOptions
    options: VCastOptions

    def waits_for_device(self) -> bool:
        """See `Strategy.waits_for_device`: shares of frames come from features."""
        return True

    def score(self, tokens: Tensor, grid: Grid, context: Context) -> Tensor:
        """Distance to the frame's mean plus scaled length, 0 to 3; see `Strategy.score`."""
        frames = tokens.reshape(grid.frames, grid.per_frame, -1).float()
        away = 1 - (unit_rows(frames) * unit_rows(frames.mean(1, keepdim=True))).sum(-1)
        length = frames.norm(dim=-1)
        low, high = length.amin(1, keepdim=True), length.amax(1, keepdim=True)
        return (away + (length - low) / (high - low + 1e-6)).flatten()

    def select_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Tensor:
        """See `Strategy.select_span`."""
        return best_per_frame(self.score(tokens, grid, context), self._shares(tokens, grid, count))

    def _shares(self, tokens: Tensor, grid: Grid, count: int) -> Sequence[int]:
        """Tokens of each frame."""
        floor = 1 if count >= grid.frames else 0
        weights = (_curvature(tokens, grid) / self.options.temperature).softmax(0)
        units = (weights.double() * _UNITS).round().long().tolist()
        caps = [grid.per_frame - floor] * grid.frames
        return [floor + n for n in largest_remainder(count - floor * grid.frames, units, caps, 0)]


def _curvature(tokens: Tensor, grid: Grid) -> Tensor:
    """One minus the cosine between neighbouring steps of the frames' means, 0 to 2, float32 [T]; 1 at both ends."""
    means = unit_rows(tokens.reshape(grid.frames, grid.per_frame, -1).float().mean(1))
    steps = means.diff(dim=0)
    curvature = means.new_ones(grid.frames)
    if grid.frames > 2:
        curvature[1:-1] = 1 - cosine_similarity(steps[:-1], steps[1:], dim=-1, eps=1e-6)
    return curvature
