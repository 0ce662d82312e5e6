"""The slots that the forward pass at hand writes."""

from __future__ import annotations

from torch import Tensor


def step_slots(attention: str) -> Tensor | None:
    """Slots of the step's tokens, int64 [n], -1 for padding; None outside a forward pass, and for an unknown layer.

    Args:
        attention: name of an attention layer, as vLLM's forward context knows it.
    """
    from vllm.forward_context import get_forward_context, is_forward_context_available

    if not is_forward_context_available():
        return None
    mapping = get_forward_context().slot_mapping
    return mapping.get(attention) if isinstance(mapping, dict) else None
