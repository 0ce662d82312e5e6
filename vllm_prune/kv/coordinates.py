"""Coordinates of every cached token, for models whose rotary embedding has three (M-RoPE): frame, row and column.

Stored by slot, like the norms of `saliency`, so they survive prefix-cache hits. They are those that attention rotates
by, so a visual token that pruning has kept stands where it stood in its picture. A token that carries the positions of
several others has those of the one that these are merged into.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..vllm_compat import cuda_graphs
from .step_slots import step_slots

AXES = 3

_LIBRARY = torch.library.Library("vllm_prune", "FRAGMENT")
_STORES: dict[int, CoordinateStore] = {}


def _record_coordinates(positions: Tensor, anchor: Tensor, store: int) -> None:
    coordinates = _STORES.get(store)
    if coordinates is not None and (coordinates.armed or cuda_graphs.capturing()):
        coordinates.record(positions)


def _record_coordinates_fake(positions: Tensor, anchor: Tensor, store: int) -> None:
    return None


def _define() -> None:
    from vllm.utils.torch_utils import direct_register_custom_op

    # `anchor` is declared as written to, or the compiler would drop a call without results.
    direct_register_custom_op(
        "record_coordinates",
        _record_coordinates,
        mutates_args=["anchor"],
        fake_impl=_record_coordinates_fake,
        target_lib=_LIBRARY,
    )


class CoordinateStore:
    """Coordinates per slot.

    Args:
        model: the loaded model; its first decoder layer gets a hook.
        name: name of that layer's attention, as vLLM's forward context knows it.
        device: where the coordinates live.
        key: by which compiled code finds them; see `CompactingWorker.init_device`.

    Attributes:
        hooked: whether the decoder layer was there.
        names: an attention layer of every cache group whose slots are recorded, as vLLM's forward context knows it.
        places: int32 [3, slots + 1] once the cache is there; the last column takes padding.
        armed: whether the step at hand is recorded. Where a CUDA graph has captured the kernels, every replay is.
    """

    def __init__(self, model: nn.Module, name: str, device: torch.device, key: int) -> None:
        if not hasattr(torch.ops.vllm_prune, "record_coordinates"):
            _define()
        self.names: tuple[str, ...] = (name,)
        self.key = key
        self.places: Tensor | None = None
        self.armed = True
        self._model = model
        self.anchor = torch.zeros(1, device=device)
        wanted = _decoder_layer(name)
        module = None if wanted is None else dict(model.named_modules()).get(wanted)
        self.hooked = module is not None
        if module is not None:
            anchor = self.anchor

            def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                positions = kwargs["positions"] if "positions" in kwargs else args[0]
                if positions.dim() == 2:
                    torch.ops.vllm_prune.record_coordinates(positions, anchor, key)

            module.register_forward_pre_hook(before, with_kwargs=True)

    def allocate(self, slots: int, names: tuple[str, ...] = ()) -> None:
        """Start to record, once the number of slots is known, and a layer of each cache group that has coordinates."""
        self.names = names or self.names
        self.places = torch.zeros(AXES, slots + 1, dtype=torch.int32, device=self.anchor.device)
        _STORES[self.key] = self

    def close(self) -> None:
        """Stop recording and free the memory."""
        _STORES.pop(self.key, None)
        self.places = None

    def record(self, positions: Tensor) -> None:
        """Store the coordinates of a step's tokens, int64 [3, n], at the slots that this step writes.

        What a layer is told of a merged token may be the row of several positions; those of its cell are recorded.
        """
        if self.places is None:
            return
        cells = getattr(self._model, "cell_positions", None)
        positions = positions if cells is None else cells
        for name in self.names:
            slots = step_slots(name)
            if slots is not None:
                count = min(len(slots), positions.shape[1])
                # Padding has slot -1, which is the last column.
                self.places[:, slots[:count]] = positions[:AXES, :count].to(torch.int32)

    def at(self, slots: Tensor) -> Tensor:
        """int64 [3, n], coordinates of the tokens in the given slots."""
        assert self.places is not None
        return self.places[:, slots].long()


def _decoder_layer(attention: str) -> str | None:
    """Name of the layer around an attention layer: `...layers.0.self_attn.attn` -> `...layers.0`."""
    stack, separator, inside = attention.rpartition(".layers.")
    return f"{stack}{separator}{inside.split('.')[0]}" if separator else None
