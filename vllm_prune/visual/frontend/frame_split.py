"""How many tokens each frame keeps, where that has to be known before the tower has run.

Qwen3-VL and Molmo2 write text between frames. A free choice over the video could be had there by one run of embeddings
that carries the rows of that text along, in places that only the tower's output decides. Counts per frame are taken
instead: token ids, cache keys, usage and the bidirectional ranges of Molmo2 all come from the prompt, which is final
before the tower runs, and every frame keeps its timestamp in front. `benchmarks.stts.frame_split` has what it costs:
much for a strategy that spends K where something happens (`mc_evs`), nothing or less than nothing for one that looks at
each cell on its own and may forget a frame (`gui_dedup`, `stts`). Even counts were as good as those by change or
better, but for `mc_evs`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ...shares import largest_remainder

if TYPE_CHECKING:
    from ...grid import Grid

FrameSplit = Literal["even", "energy"]


def frame_counts(count: int, grid: Grid, patches: Tensor | None, split: FrameSplit) -> tuple[int, ...]:
    """Split K over frames, at least one each when K >= T, at most a whole frame.

    Args:
        count: K.
        grid: the item's grid.
        patches: processor output [patches, values]; None (precomputed embeddings) falls back to "even".
        split: "even", or "energy" for shares that follow how much a frame differs from the one before.

    Returns:
        One count per frame, sum K.
    """
    weights = [1] * grid.frames if split == "even" or patches is None else frame_energy(patches, grid.frames)
    floor = 1 if count >= grid.frames else 0
    return tuple(largest_remainder(count, weights, [grid.per_frame] * grid.frames, floor))


def frame_energy(patches: Tensor, frames: int) -> list[int]:
    """Mean absolute pixel change against the previous frame, scaled to 1..1001; the first frame gets 1001.

    Quantised to integers so that every process and thread count arrives at the same split.
    """
    if frames == 1:
        return [1]
    # Raw pixels may be uint8; a difference of those would wrap.
    values = patches.reshape(frames, -1).to(torch.float32)
    change = (values[1:] - values[:-1]).abs().mean(1)
    scaled = (change / change.max().clamp_min(1e-6) * 1000).round().long() + 1
    return [1001, *scaled.tolist()]
