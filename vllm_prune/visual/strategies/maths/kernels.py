"""Triton kernels for features on a GPU; the torch code that each of them stands for is beside its caller."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDEST = 8192
"""Cells of a segment that one program holds in its registers."""


@triton.jit
def _max_min_gains(table, lonely, first, out, n, steps, top, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    segment = tl.program_id(0).to(tl.int64)
    cell = tl.arange(0, BLOCK)
    inside = cell < n
    nothing = float("-inf")
    alone = tl.load(lonely + segment * n + cell, mask=inside, other=nothing)
    start = tl.load(first + segment)
    gains = tl.where(cell == start, tl.max(alone, 0) + top, nothing)
    rows = table + segment * n * n
    reach = tl.load(rows + start * n + cell, mask=inside, other=nothing)
    for _ in range(1, steps):
        gain = tl.max(reach, 0)
        # The lowest of equal cells, as `torch.max` has it.
        pick = tl.min(tl.where(reach == gain, cell, BLOCK), 0)
        gains = tl.where(cell == pick, tl.maximum(gains, gain), gains)
        reach = tl.minimum(reach, tl.load(rows + pick * n + cell, mask=inside, other=nothing))
    tl.store(out + segment * n + cell, gains, mask=inside)


def max_min_gains(table: Tensor, lonely: Tensor, first: Tensor, steps: int, top: float) -> Tensor:
    """All steps of `diversity.farthest_points` in one launch, one program for each segment.

    Step by step in torch these are three launches a step. A step reads one row of n distances, so the bytes are
    steps * n * 4 for each segment, and the time is that of `steps` dependent reads.

    Args:
        table: float32 [S, n, n], contiguous: distances, -inf on the diagonal and for padding.
        lonely: float32 [S, n]: distance to the nearest neighbour, -inf for padding.
        first: int64 [S], the first picks.
        steps: picks per segment, 1 to n.
        top: added to the gain of the first pick.

    Returns:
        float32 [S, n]: the distance at which each cell was picked, -inf where it was not.

    Raises:
        ValueError: segments of more than `WIDEST` cells.
    """
    segments, n = lonely.shape
    if n > WIDEST:
        raise ValueError(f"segments of {n} cells; the kernel takes at most {WIDEST}")
    out = torch.empty_like(lonely)
    block = triton.next_power_of_2(n)
    # One warp reduces up to 256 values without shared memory.
    _max_min_gains[(segments,)](
        table, lonely.contiguous(), first, out, n, steps, top, BLOCK=block, num_warps=min(8, max(1, block // 256))
    )
    return out
