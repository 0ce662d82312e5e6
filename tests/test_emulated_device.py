"""The emulated device refuses what waits for it, and computes everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from .emulated_device import DEVICE, EmulatedDevice, HostSync, async_tensor_h2d, on_host

WAITS: dict[str, Callable[[Tensor], Any]] = {
    "a value": lambda x: x[0].item(),
    "a condition": lambda x: bool((x > 1).any()),
    "an integer": lambda x: int(x.max()),
    "a list": lambda x: x.tolist(),
    "an array": lambda x: x.numpy(),
    "a copy to the host": lambda x: x.cpu(),
    "an unpinned copy to the device": lambda x: torch.arange(3).to(DEVICE, non_blocking=True),
    "a copy from the host in place": lambda x: x.copy_(torch.arange(6)),
    "a tensor built on the device": lambda x: x + torch.tensor([1], device=DEVICE),
    "a list as an index": lambda x: x[[1, 2]],
    "an index of the host": lambda x: x[torch.arange(2)],
    "a mask": lambda x: x[x > 2],
    "places of a mask": lambda x: (x > 2).nonzero(),
    "a mask that takes several values": lambda x: x.__setitem__(x > 2, x[:3]),
    "equality": lambda x: torch.equal(x, x + 1),
    "eigenvectors": lambda x: torch.linalg.eigh(x[:4].view(2, 2).float()),
}
RUNS: dict[str, Callable[[Tensor], Any]] = {
    "arithmetic": lambda x: (x * 2 - 1).float().softmax(0),
    "a view in place": lambda x: x[1:3].fill_(7),
    "an index of the device": lambda x: x[async_tensor_h2d([4, 0], device=x.device)],
    "a staged copy in place": lambda x: async_tensor_h2d([8, 9], out=x[2:4]),
    "a mask that takes one value": lambda x: x.__setitem__(x > 2, 5),
    "sorting": lambda x: x.argsort(descending=True, stable=True)[:3].sort().values,
    "an orthonormal basis": lambda x: torch.linalg.qr(x.view(3, 2).float()).R.abs(),
    "places of a known number": lambda x: torch.nonzero_static(x > 2, size=3),
}


@pytest.mark.parametrize("name", WAITS)
@pytest.mark.parametrize("inference", [False, True])
def test_what_waits_is_refused(name: str, inference: bool) -> None:
    with torch.inference_mode(inference), EmulatedDevice(), pytest.raises(HostSync):
        WAITS[name](torch.arange(6, device=DEVICE))


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("inference", [False, True])
def test_everything_else_computes_what_the_cpu_does(name: str, inference: bool) -> None:
    with torch.inference_mode(inference):
        there = torch.arange(6)
        expected = RUNS[name](there)
        with EmulatedDevice():
            here = torch.arange(6, device=DEVICE)
            result = RUNS[name](here)
    assert torch.equal(on_host(here), there)
    if expected is not None:
        assert result.device == DEVICE
        assert torch.equal(on_host(result), expected)
