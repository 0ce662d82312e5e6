"""The least time that a request takes by arithmetic: floating-point operations and bytes, from a model's shapes.

A matrix product of n rows with a matrix of p weights takes 2np operations. Attention of n queries to m keys takes 4nm
operations per unit of the heads' total width, half of that where it is causal. Prefill and tower are bound by
operations, decoding by the bytes of the weights, once per step and shared by the batch, and of each request's own
cached rows. Both speeds are measured on the same machine by `speed.micro`. Left out are norms, activations, the
vocabulary, launches, the choice itself, the processor and HTTP: this is a floor, and no model of the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..shapes import Family, Shape
from .arms import STOCK, Arm
from .micro import Speeds
from .workloads import Workload

PATCHES = 4
"""Patches of a visual token."""
WINDOW = 64
"""Patches of a window of Qwen2.5-VL's tower: 112 pixels square."""
CUT_AFTER = 4
"""Blocks in front of a cut in the tower, by default."""
BYTES = 2


@dataclass(frozen=True)
class Request:
    """One request by its sizes.

    Attributes:
        frames: patches of each separately attended step: an image, or two frames of a video.
        text: tokens of text.
        answer: tokens.
        keep: share of the visual tokens that the language model reads.
        cut_after: blocks of the tower that see every patch, None where the tower is not cut.
        rows: share of the prompt's rows that stays in the cache while decoding.
    """

    frames: tuple[int, ...]
    text: int
    answer: int
    keep: float = 1.0
    cut_after: int | None = None
    rows: float = 1.0

    @property
    def prompt(self) -> int:
        """Tokens that the language model reads."""
        return self.text + int(self.keep * sum(self.frames)) // PATCHES


@dataclass(frozen=True)
class Seconds:
    """Least time of one request's parts; decoding as its share of a batch."""

    tower: float
    prefill: float
    decode: float

    @property
    def total(self) -> float:
        """Of all parts: one request after the other through one device."""
        return self.tower + self.prefill + self.decode


def request_of(shape: Shape, workload: Workload, arm: Arm, text: int = 32) -> Request:
    """The sizes of a workload's request under an arm's budget."""
    pictures = [PATCHES * rows * cols for rows, cols in workload.screens]
    if workload.video is not None:
        frames, rows, cols = workload.video
        pictures += [PATCHES * rows * cols] * (frames // 2)
    kv = (arm.pruning or {}).get("kv") or {}
    whole = Request(tuple(pictures), text + workload.words, workload.tokens, arm.keep, rows=kv.get("keep", 1.0))
    if arm.place != "tower":
        return whole
    after = ((arm.pruning or {}).get("visual") or {}).get("options", {}).get("after")
    return replace(whole, cut_after=min(CUT_AFTER if after is None else after, shape.depth - 1))


def seconds(shape: Shape, request: Request, speeds: Speeds, batch: int) -> Seconds:
    """Least time of a request.

    Args:
        shape: of the model.
        request: its sizes.
        speeds: of the machine.
        batch: requests that decode together.
    """
    step_bytes = language_weights(shape) * BYTES / batch
    cached = request.rows * request.prompt + request.answer / 2
    row_bytes = shape.layers * shape.kv_heads * shape.head * 2 * BYTES
    return Seconds(
        tower_operations(shape, request) / speeds.flops,
        prefill_operations(shape, request.prompt) / speeds.flops,
        max(0, request.answer - 1) * (step_bytes + cached * row_bytes) / speeds.bytes,
    )


def language_weights(shape: Shape) -> int:
    """Weights of the language model's layers."""
    attention = shape.width * shape.head * 2 * (shape.heads + shape.kv_heads)
    return shape.layers * (attention + 3 * shape.width * shape.inner)


def prefill_operations(shape: Shape, tokens: int) -> float:
    """Of the language model over a prompt."""
    attention = 2 * tokens**2 * shape.heads * shape.head * shape.layers
    return 2.0 * tokens * language_weights(shape) + attention


def tower_operations(shape: Shape, request: Request) -> float:
    """Of the vision tower over all frames."""
    after = shape.depth if request.cut_after is None else min(request.cut_after, shape.depth)
    total = 0.0
    for patches in request.frames:
        kept = request.keep * patches if request.cut_after is not None else patches
        for block in range(shape.depth):
            total += block_operations(shape, block, patches if block < after else kept)
    return total


def block_operations(shape: Shape, block: int, patches: float) -> float:
    """Of one block of the tower over one frame."""
    matrices = 3 if shape.family is Family.qwen2_5_vl else 2
    weights = 4 * shape.tower_width**2 + matrices * shape.tower_width * shape.tower_inner
    windowed = shape.family is Family.qwen2_5_vl and block not in shape.full_blocks
    seen = min(WINDOW, patches) if windowed else patches
    return 2.0 * patches * weights + 4.0 * patches * seen * shape.tower_width


def ratio(shape: Shape, workload: Workload, arm: Arm, stock: Arm, speeds: Speeds, batch: int) -> float:
    """The largest possible throughput of an arm over stock's."""
    least, whole = (seconds(shape, request_of(shape, workload, one), speeds, batch).total for one in (arm, stock))
    return whole / least


def add_to(cell: dict[str, Any], shape: Shape, workload: Workload, arms: Sequence[Arm], speeds: Speeds) -> None:
    """Put the bound beside each arm's throughput in a load's summary."""
    by_name, batch = {arm.name: arm for arm in arms}, cell["concurrency"]
    for row in cell["rows"]:
        arm = by_name[row["arm"]]
        least = seconds(shape, request_of(shape, workload, arm), speeds, batch)
        most = ratio(shape, workload, arm, by_name[STOCK], speeds, batch)
        row |= {
            "least_seconds": {"tower": least.tower, "prefill": least.prefill, "decode": least.decode},
            "share_of_device_bound": row["requests_per_second"] * least.total,
            "ratio_bound": most,
            "share_of_ratio_bound": row["throughput_ratio"] / most,
        }
