"""Gated delta nets in float32 on the CPU, in place of vLLM's kernel, which takes bfloat16 only.

Caches, block tables and metadata stay vLLM's; what is replaced is the arithmetic alone (arXiv 2412.06464, equation 10):
S_t = a_t S_{t-1} + b_t k_t (v_t - a_t S_{t-1}^T k_t)^T, read out as S_t^T q_t, after a short causal convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention as vllm_kernel
from vllm.utils.torch_utils import LayerNameType


def core(mixed_qkv: Tensor, b: Tensor, a: Tensor, core_attn_out: Tensor, layer_name: LayerNameType) -> None:
    """Stands in for `cpu_gdn_attention_core`; see there for the arguments."""
    context = get_forward_context()
    layer = context.no_compile_layers[vllm_kernel._resolve_layer_name(layer_name)]
    if context.attn_metadata is None or context.attn_metadata[layer.prefix].num_actual_tokens == 0:
        return
    about = context.attn_metadata[layer.prefix]
    starts, slots = about.non_spec_query_start_loc.tolist(), about.non_spec_state_indices_tensor.tolist()
    for i, goes_on in enumerate(_have_states(about)):
        span = slice(starts[i], starts[i + 1])
        conv, state = _states(layer, slots[i], goes_on)
        q, k, v = _convolved(layer, conv, mixed_qkv[span].float())
        decay = (-layer.A_log.float().exp() * F.softplus(a[span].float() + layer.dt_bias.float())).exp()
        core_attn_out[span] = _recurrence(state, q, k, v, decay, b[span].float().sigmoid()).to(core_attn_out.dtype)


def _have_states(about: Any) -> list[bool]:
    """Of each request of the step, decoding ones first, whether it goes on from a state."""
    prefills = about.has_initial_state.tolist() if about.num_prefills else []
    return [True] * about.num_decodes + prefills[-about.num_prefills or len(prefills) :]


def _states(layer: Any, slot: int, goes_on: bool) -> tuple[Tensor, Tensor]:
    """Views of a request's convolution window [channels, width - 1] and state [heads, K, V]."""
    conv, state = layer.kv_cache[0], layer.kv_cache[1]
    conv = conv if vllm_kernel.is_conv_state_dim_first() else conv.transpose(-1, -2)
    slots, heads, values, keys = state.size()
    state = state.view(slots, heads, keys, values)
    if not goes_on:
        conv[slot] = 0
        state[slot] = 0
    return conv[slot], state[slot]


def _convolved(layer: Any, window: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [tokens, heads, *]; the window takes the last inputs."""
    weight = vllm_kernel._unpacked_conv_weight(layer).float()
    inputs = torch.cat([window.float(), mixed.t()], 1)
    window.copy_(inputs[:, 1 - weight.shape[1] :])
    bias = None if layer.conv1d.bias is None else layer.conv1d.bias.float()
    mixed = F.silu(F.conv1d(inputs[None], weight[:, None], bias, groups=len(weight))[0].t())
    q, k, v = (part[0].float() for part in layer.rearrange_mixed_qkv(mixed))
    q, k = (part * torch.rsqrt((part * part).sum(-1, keepdim=True) + 1e-6) for part in (q, k))
    repeats = v.shape[1] // q.shape[1]
    return q.repeat_interleave(repeats, 1) / q.shape[-1] ** 0.5, k.repeat_interleave(repeats, 1), v


def _recurrence(state: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, rate: Tensor) -> Tensor:
    """Read-outs [tokens, heads, V]; `state` is updated in place."""
    current, rows = state.float(), []
    for t in range(len(q)):
        current = current * decay[t][:, None, None]
        change = (v[t] - (current * k[t][..., None]).sum(-2)) * rate[t][:, None]
        current = current + k[t][..., None] * change[:, None]
        rows.append((current * q[t][..., None]).sum(-2))
    state.copy_(current)
    return torch.stack(rows)


def install() -> None:
    """Put the stand-in in the kernel's place, for the rest of the process; before the first engine that needs it."""
    if vllm_kernel.cpu_gdn_attention_core is not core:
        assert not vllm_kernel._CPU_GDN_ATTENTION_OPS_REGISTERED, "an engine has registered vLLM's kernel already"
        vllm_kernel.cpu_gdn_attention_core = core
