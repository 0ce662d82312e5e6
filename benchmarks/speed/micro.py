"""Two micro-benchmarks that a bound is calibrated by: a large matrix product, and a copy through memory.

`python -m benchmarks.speed.micro [tiny|full]` prints one line of JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch


@dataclass(frozen=True)
class Speeds:
    """What the machine does at best.

    Attributes:
        flops: floating-point operations per second of a bfloat16 (CPU: float32) matrix product.
        bytes: per second of a copy, read and written counted.
        device: where.
        dtype: of the product.
    """

    flops: float
    bytes: float
    device: str
    dtype: str


def measure(size: str = "full", repeats: int = 7) -> Speeds:
    """Medians of a few runs.

    Args:
        size: "full" for sides and copies as large as a model's; "tiny" for a try.
        repeats: timed runs.
    """
    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    side = {"full": 8192 if cuda else 2048, "tiny": 256}[size]
    count = {"full": 1 << (30 if cuda else 27), "tiny": 1 << 20}[size]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    product = _seconds(lambda: torch.mm(a, b, out=out), repeats, cuda)
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = _seconds(lambda: target.copy_(source), repeats, cuda)
    return Speeds(2 * side**3 / product, 2 * count / copy, device, str(dtype).removeprefix("torch."))


def _seconds(work: Callable[[], object], repeats: int, cuda: bool) -> float:
    times = []
    for _ in range(repeats + 2):
        if cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


if __name__ == "__main__":
    print(json.dumps(asdict(measure(*sys.argv[1:2]))))
