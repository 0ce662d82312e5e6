"""A device on the CPU whose host never waits for it: what would synchronise on CUDA raises `HostSync`.

Tensors of the emulated device say that they live elsewhere, and hold their values in tensors of the CPU. Reading
a value, a result whose shape depends on values, a copy from or to the host (other than by vLLM's
`async_tensor_h2d`, which stages in pinned memory), and mixing tensors of both sides are what a CUDA step must
not do while it wants to run ahead.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("meta")
"""A device type that PyTorch knows by name, and needs no driver for; meta tensors as such take no part."""

WAITING = {
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::repeat_interleave",
    # These read whether the decomposition has converged.
    "aten::_linalg_eigh",
    "aten::_linalg_svd",
    "aten::linalg_cholesky_ex",
    "aten::linalg_inv_ex",
    "aten::_linalg_solve_ex",
}
"""Operators that read device memory on the host."""


STAGED = "async_tensor_h2d"


class HostSync(AssertionError):
    """The host would have waited for the device."""


class DeviceTensor(torch.Tensor):
    """A tensor of the emulated device.

    Attributes:
        values: where its values are, on the CPU.
    """

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> DeviceTensor:
        """Wrap a tensor of the CPU."""
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        made.values = values
        return made

    def __init__(self, values: Tensor) -> None: ...

    def tolist(self) -> Any:
        """Refuse: it reads the values."""
        raise HostSync("a list of values in device memory")

    def numpy(self, **_: Any) -> Any:
        """Refuse: it reads the values."""
        raise HostSync("an array of values in device memory")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.values!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator that has an argument of the device."""
        return run(func, args, kwargs or {})


class EmulatedDevice(TorchDispatchMode):
    """While it is active, tensors can be made on `DEVICE`, too, and vLLM's staged copies reach it."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def __enter__(self) -> Any:
        """VLLM's CPU worker has put a stand-in that copies nothing in the place of its `async_tensor_h2d`."""
        # PyTorch enters the mode again for every operator that is made of others.
        self._depth += 1
        if self._depth == 1:
            self._patched = pytest.MonkeyPatch()
            for name, module in list(sys.modules.items()):
                if name.startswith(("vllm_prune", "tests", "vllm.utils.torch_utils")) and hasattr(module, STAGED):
                    self._patched.setattr(module, STAGED, async_tensor_h2d)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """Put back what was there."""
        self._depth -= 1
        if self._depth == 0:
            self._patched.undo()
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator; one that is made of others in parts."""
        with self:
            parts = func.decompose(*args, **(kwargs or {}))
        return run(func, args, kwargs or {}) if parts is NotImplemented else parts


def async_tensor_h2d(data: Any, device: Any = None, dtype: Any = None, out: Any = None) -> Tensor:
    """What vLLM's function of this name does on CUDA, where it stages in pinned memory and does not wait."""
    staged = torch.from_numpy(data) if isinstance(data, np.ndarray) else torch.as_tensor(data, dtype=dtype)
    assert not isinstance(staged, DeviceTensor)
    if out is None:
        return staged.to(device, dtype, non_blocking=True)
    assert dtype in (None, out.dtype)
    return out.copy_(staged, non_blocking=True)


def permissions(monkeypatch: pytest.MonkeyPatch, place: str) -> list[bool]:
    """One entry for each time that vLLM's check is switched off by the `gpu_sync_allowed` of a module."""
    entered = list[bool]()

    @contextmanager
    def record() -> Iterator[None]:
        entered.append(True)
        yield

    monkeypatch.setattr(place, record)
    return entered


def on_device(tensor: Tensor) -> Tensor:
    """A tensor of the host as one of the device; for set-up, where waiting is no fault."""
    return DeviceTensor(tensor.clone())


def on_host(tensor: Tensor) -> Tensor:
    """The values of a tensor of the device; for checks, where waiting is no fault."""
    return tensor.values if isinstance(tensor, DeviceTensor) else tensor


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Carry an operator out on the CPU, and refuse what a host would have to wait for."""
    name = func._schema.name
    tensors = _tensors((args, kwargs))
    ours = [one for one in tensors if isinstance(one, DeviceTensor)]
    target = kwargs.get("device")
    makes_ours = target is not None and torch.device(target).type == DEVICE.type
    if ours and name in WAITING:
        raise HostSync(f"{name} reads device memory")
    if any(one.device.type == DEVICE.type and not isinstance(one, DeviceTensor) for one in tensors):
        raise HostSync(f"{name} takes a tensor that torch.tensor has built on the device")
    if ours and _takes_mask(name, args):
        raise HostSync(f"{name} takes a mask, whose number of places is in device memory")
    if name == "aten::_to_copy":
        _check_copy(bool(ours), makes_ours if target is not None else bool(ours))
    elif name == "aten::copy_":
        _check_copy(isinstance(args[1], DeviceTensor), isinstance(args[0], DeviceTensor))
    elif ours and any(one.dim() for one in tensors if not isinstance(one, DeviceTensor)):
        raise HostSync(f"{name} takes tensors of the host and of the device")
    by_values = {id(one.values): one for one in ours}
    plain = tree_map(lambda one: one.values if isinstance(one, DeviceTensor) else one, (args, kwargs))
    if target is not None:
        plain[1]["device"] = torch.device("cpu")
    result = func(*plain[0], **plain[1])
    if not (makes_ours or (ours and target is None)):
        return result
    # What was written in place is the tensor that it was.
    return tree_map(lambda one: by_values[id(one)] if id(one) in by_values else _wrapped(one), result)


def _wrapped(result: Any) -> Any:
    return DeviceTensor(result) if isinstance(result, Tensor) else result


def _takes_mask(name: str, args: Any) -> bool:
    if name not in ("aten::index", "aten::index_put_"):
        return False
    # A single value for all places of a mask is a fill.
    fills = name == "aten::index_put_" and len(args[1]) == 1 and args[2].numel() == 1
    return not fills and any(one.dtype in (torch.bool, torch.uint8) for one in _tensors(args[1]))


def _tensors(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map(lambda one: found.append(one) if isinstance(one, Tensor) else None, tree)
    return found


def _check_copy(from_device: bool, to_device: bool) -> None:
    if from_device and not to_device:
        raise HostSync("a copy from the device to the host")
    if to_device and not from_device and not _staged():
        raise HostSync("a copy from the host to the device that is not made by async_tensor_h2d")


def _staged() -> bool:
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_code is async_tensor_h2d.__code__:
            return True
        frame = frame.f_back
    return False
