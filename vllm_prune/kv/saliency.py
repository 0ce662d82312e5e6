"""Norms of every token at the input of each layer, kept per slot of the cache (GUI-KV section 3.1).

Both of the hidden state, which is what the paper's text says, and of what the layer's input norm makes of it, which is
what its code takes.

Stored by slot, it survives prefix-cache hits as the rows themselves do. The hook's body is one custom
operator that looks opaque to the compiler, so it also runs in compiled models and CUDA graphs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..vllm_compat import cuda_graphs
from .step_slots import step_slots

_LIBRARY = torch.library.Library("vllm_prune", "FRAGMENT")
_STORES: dict[int, SaliencyStore] = {}


def _record_norm(hidden: Tensor, normed: Tensor, anchor: Tensor, store: int, layer: int) -> None:
    saliency = _STORES.get(store)
    if saliency is not None and (saliency.armed or cuda_graphs.capturing()):
        saliency.record(hidden, normed, layer)


def _record_norm_fake(hidden: Tensor, normed: Tensor, anchor: Tensor, store: int, layer: int) -> None:
    return None


def _define() -> None:
    from vllm.utils.torch_utils import direct_register_custom_op

    # `anchor` is declared as written to, or the compiler would drop a call without results.
    direct_register_custom_op(
        "record_norm", _record_norm, mutates_args=["anchor"], fake_impl=_record_norm_fake, target_lib=_LIBRARY
    )


class SaliencyStore:
    """Norms per layer and slot.

    Args:
        model: the loaded model; its decoder layers' `input_layernorm` modules get a hook.
        names: names of the attention layers in order, as vLLM's forward context knows them.
        device: where the norms live.
        key: by which compiled code finds them; see `CompactingWorker.init_device`.

    Attributes:
        hooked: whether every attention layer has an input norm.
        norms: [2, layers, slots + 1] float32 once the cache is there, those of hidden states and of normed ones; the
            last column takes padding.
        armed: whether the step at hand is recorded. Where a CUDA graph has captured the kernels, every replay is.
    """

    def __init__(self, model: nn.Module, names: list[str], device: torch.device, key: int) -> None:
        if not hasattr(torch.ops.vllm_prune, "record_norm"):
            _define()
        self.names = names
        self.norms: Tensor | None = None
        self.armed = True
        self.anchor = torch.zeros(1, device=device)
        modules = dict(model.named_modules())
        inputs = [modules.get(input_norm(name)) for name in names]
        self.hooked = all(module is not None for module in inputs)
        self.key = key
        for index, module in enumerate(inputs):
            if self.hooked and module is not None:
                module.register_forward_hook(self._hook(index))

    def _hook(self, index: int) -> Any:
        key, anchor = self.key, self.anchor

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # Fused norms return (normed, residual); the first layer's only takes the residual as its input.
            normed, residual = output if isinstance(output, tuple) else (output, args[0])
            torch.ops.vllm_prune.record_norm(residual, normed, anchor, key, index)

        return after

    def allocate(self, slots: int) -> None:
        """Start to record, once the number of slots is known."""
        self.norms = torch.zeros(2, len(self.names), slots + 1, device=self.anchor.device)
        _STORES[self.key] = self

    def close(self) -> None:
        """Stop recording and free the memory."""
        _STORES.pop(self.key, None)
        self.norms = None

    def record(self, hidden: Tensor, normed: Tensor, layer: int) -> None:
        """Store the norms of a step's tokens at the slots that this step writes."""
        if self.norms is None:
            return
        slots = step_slots(self.names[layer])
        if slots is not None:
            count = min(len(slots), len(hidden))
            # Padding has slot -1, which is the last column.
            for kind, rows in enumerate((hidden, normed)):
                self.norms[kind, layer][slots[:count]] = torch.linalg.vector_norm(
                    rows[:count], dim=-1, dtype=torch.float32
                )

    def at(self, layer: int, slots: Tensor) -> Tensor:
        """float32 [2, n], norms of the tokens in the given slots: of hidden states, and of normed ones."""
        assert self.norms is not None
        return self.norms[:, layer][:, slots]


def input_norm(attention: str) -> str:
    """Name of the norm before an attention layer: `...layers.3.self_attn.attn` -> `...layers.3.input_layernorm`."""
    stack, separator, inside = attention.rpartition(".layers.")
    return f"{stack}{separator}{inside.split('.')[0]}.input_layernorm"
