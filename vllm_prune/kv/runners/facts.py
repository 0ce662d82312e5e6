"""What a compaction has to know of this rank and of its model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...visual.models.rotary import positions_in


def decoder_attention(compilation_config: Any) -> list[Any]:
    """VLLM's attention layers of the language model, in order."""
    from vllm.model_executor.layers.attention import Attention
    from vllm.v1.attention.backend import AttentionType

    layers = compilation_config.static_forward_context.values()
    return [layer for layer in layers if isinstance(layer, Attention) and layer.attn_type == AttentionType.DECODER]


def rotation_of(model: nn.Module, layer: Any) -> Tensor | None:
    """The rotary table beside an attention layer, where it turns halves of the whole head."""
    parent = layer.layer_name.rpartition(".")[0]
    module = dict(model.named_modules()).get(f"{parent}.rotary_emb")
    table = getattr(module, "cos_sin_cache", None)
    if table is None or not getattr(module, "is_neox_style", False) or table.shape[1] != layer.head_size:
        return None
    return table[: positions_in(module)].float()


def head_offset(layer: Any) -> int:
    """Number of this rank's first KV head."""
    from vllm.distributed import get_tensor_model_parallel_rank

    return int(get_tensor_model_parallel_rank() * layer.num_kv_heads)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all tensor-parallel ranks."""
    from vllm.distributed import tensor_model_parallel_all_reduce

    # It hands back its argument where there is one rank.
    return tensor_model_parallel_all_reduce(tensor)
