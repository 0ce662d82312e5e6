"""CUDA graphs of a real engine, emulated on the CPU: attention that a graph can hold, and the capture itself.

vLLM's own machinery decides what is captured, when it is replayed and how a batch is padded. Emulated are the kernels'
recording (`tests.emulated_graphs`) and an attention backend that reads its metadata from the runner's tensors, as those
of CUDA do; vLLM's CPU attention plans its work on the host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends import cpu_attn

from tests import emulated_graphs
from vllm_prune.kv import coordinates, gates, prompt_queries, saliency
from vllm_prune.kv.cache import StridedRows

from .engines import runner_of


class MetadataBuilder(cpu_attn.CPUAttentionMetadataBuilder):
    """Metadata that points to the runner's persistent tensors."""

    _cudagraph_support = AttentionCGSupport.ALWAYS

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        """See the base class."""
        common = common_attn_metadata
        return cpu_attn.CPUAttentionMetadata(
            num_actual_tokens=common.num_actual_tokens,
            max_query_len=common.max_query_len,
            query_start_loc=common.query_start_loc,
            max_seq_len=common.max_seq_len,
            seq_lens=common.seq_lens,
            block_table=common.block_table_tensor,
            slot_mapping=common.slot_mapping,
            scheduler_metadata=None,
            causal=True,
        )


class Attention(cpu_attn.CPUAttentionBackendImpl):
    """Paged attention whose shapes depend on no value; the cache is [blocks, H, block_size, 2 * D]."""

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Write the step's rows; padding goes to the null block."""
        slots, size = slot_mapping.clamp(min=0), kv_cache.shape[2]
        heads, count = torch.arange(kv_cache.shape[1]), len(slots)
        rows = torch.cat([key[:count], value[:count]], -1)
        kv_cache[(slots // size)[:, None], heads[None], (slots % size)[:, None]] = rows

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        output_scale: Any = None,
        output_block_scale: Any = None,
    ) -> Tensor:
        """Every token attends to all rows of its request up to its own."""
        if attn_metadata is None:
            return output
        tokens, ends = len(query), attn_metadata.query_start_loc[1:]
        token = torch.arange(tokens)
        request = torch.searchsorted(ends, token, right=True).clamp(max=len(ends) - 1)
        last = (attn_metadata.seq_lens[request] - (ends[request] - token)).clamp(min=0)
        rows = kv_cache[attn_metadata.block_table.long()].transpose(1, 2).flatten(2, 3)[request]
        keys, values = rows.chunk(2, -1)
        hidden = torch.arange(keys.shape[2])[None] > last[:, None]
        # As CUDA's kernels, which read no row behind a request's last: padding may have written anything there.
        values = values.masked_fill(hidden[:, None, :, None], 0)
        grouped = query.view(tokens, self.num_kv_heads, -1, self.head_size)
        logits = (grouped @ keys.transpose(-1, -2)) * self.scale
        weights = logits.masked_fill(hidden[:, None, None], float("-inf")).softmax(-1)
        output.view(tokens, -1).copy_((weights @ values).reshape(tokens, -1))
        return output


class Backend(cpu_attn.CPUAttentionBackend):
    """What vLLM looks for under its backend's name."""

    @staticmethod
    def get_impl_cls() -> type[Attention]:
        """See the base class."""
        return Attention

    @staticmethod
    def get_builder_cls() -> type[MetadataBuilder]:
        """See the base class."""
        return MetadataBuilder


def install(patches: pytest.MonkeyPatch) -> None:
    """Emulate graphs in engines that start from now on."""
    from vllm.compilation import breakable_cudagraph, cuda_graph
    from vllm.platforms import current_platform
    from vllm.v1.worker.gpu import cudagraph_utils

    emulated_graphs.install(patches)
    emulated_graphs.PYTHON_OPERATORS["vllm_prune::record_norm"] = saliency._record_norm
    emulated_graphs.PYTHON_OPERATORS["vllm_prune::sum_queries"] = prompt_queries._sum_queries
    emulated_graphs.PYTHON_OPERATORS["vllm_prune::sum_hidden"] = gates._sum_hidden
    emulated_graphs.PYTHON_OPERATORS["vllm_prune::record_coordinates"] = coordinates._record_coordinates
    platform = type(current_platform)
    name = f"{__name__}.{Backend.__name__}"
    patches.setattr(platform, "get_attn_backend_cls", classmethod(lambda cls, *args, **kwargs: name))
    patches.setattr(platform, "get_global_graph_pool", lambda self: "pool", raising=False)
    for module in (cudagraph_utils, breakable_cudagraph, cuda_graph):
        patches.setattr(module, "capture_pool", lambda pool, config: contextlib.nullcontext(pool))
    for module in (breakable_cudagraph, cuda_graph):
        for weak in ("weak_ref_tensor", "weak_ref_tensors"):
            patches.setattr(module, weak, lambda tensors: tensors, raising=False)
    patches.setattr(cudagraph_utils, "graph_capture", lambda device: contextlib.nullcontext())
    for module in (cudagraph_utils, cuda_graph):
        patches.setattr(module, "current_stream", lambda: None)
    # Rows as they lie on CUDA, where no layout has to be learned.
    patches.setattr("vllm_prune.kv.runners.base.open_rows", lambda layers: [StridedRows(one) for one in layers])


def capture(llm: Any, mode: str, sizes: Sequence[int]) -> dict[str, int]:
    """Capture an engine's graphs anew, as vLLM does before it serves.

    Args:
        llm: an engine that was started with `enforce_eager`.
        mode: name of a `CUDAGraphMode`.
        sizes: tokens of a graph, ascending.

    Returns:
        Recorded kernels of each full graph, or graphs of each broken one, by mode and size.
    """
    from vllm.config import CUDAGraphMode, set_current_vllm_config

    runner = runner_of(llm)
    config = runner.compilation_config
    config.cudagraph_mode, config.max_cudagraph_capture_size = CUDAGraphMode[mode], max(sizes)
    config.cudagraph_capture_sizes = list(sizes)
    for layer in config.static_forward_context.values():
        # A custom operator with a body in Python would hide attention's kernels from the recorder.
        layer.use_direct_call = True
    with set_current_vllm_config(runner.vllm_config):
        return _capture_v2(runner) if hasattr(runner, "cudagraph_manager") else _capture_v1(runner)


def plain_graphs(runner: Any) -> list[emulated_graphs.Graph]:
    """The captured graphs of steps that observe nothing."""
    if hasattr(runner, "cudagraph_manager"):
        return list(getattr(runner.cudagraph_manager, "plain", {}).values())
    entries = getattr(runner.kv_plain_model, "concrete_cudagraph_entries", {})
    return [entry.cudagraph for entry in entries.values()]


def _capture_v2(runner: Any) -> dict[str, int]:
    from vllm.v1.worker.gpu.cudagraph_utils import ModelCudaGraphManager

    manager = runner.cudagraph_manager = ModelCudaGraphManager(
        runner.vllm_config,
        runner.device,
        runner.compilation_config.cudagraph_mode,
        decode_query_len=runner.decode_query_len,
    )
    if hasattr(runner, "capture_plain_graphs"):
        runner.capture_plain_graphs()
    manager.capture(
        runner.model,
        runner.model_state,
        runner.input_buffers,
        None,
        runner.block_tables,
        runner.attn_groups,
        runner.kv_cache_config,
    )
    sizes = {f"{key.cg_mode.name} {key.num_tokens}": len(one.recorder.operators) for key, one in manager.graphs.items()}
    broken = getattr(manager.breakable_cg_runner, "entries", {})
    return sizes | {f"PIECEWISE {key.num_tokens}": entry.capture.num_graphs for key, entry in broken.items()}


def _capture_v1(runner: Any) -> dict[str, int]:
    from vllm.compilation.breakable_cudagraph import BreakableCUDAGraphWrapper
    from vllm.compilation.cuda_graph import CUDAGraphWrapper
    from vllm.compilation.monitor import set_cudagraph_capturing_enabled
    from vllm.config import CUDAGraphMode

    config, mode, model = runner.vllm_config, runner.compilation_config.cudagraph_mode, _plain(runner.model)
    # As `GPUModelRunner.load_model`, whose place vLLM's CPU runner takes.
    if mode.has_piecewise_cudagraphs():
        model = BreakableCUDAGraphWrapper(model, config, runtime_mode=CUDAGraphMode.PIECEWISE)
    if mode.has_full_cudagraphs():
        model = CUDAGraphWrapper(model, config, runtime_mode=CUDAGraphMode.FULL)
    runner.model, runner.get_model = model, lambda: _plain(runner.model)
    if hasattr(runner, "capture_plain_graphs"):
        runner.capture_plain_graphs()
    dispatcher = runner.cudagraph_dispatcher
    for keys in dispatcher.cudagraph_keys.values():
        keys.clear()
    dispatcher.initialize_cudagraph_keys(mode, runner.uniform_decode_query_len)
    set_cudagraph_capturing_enabled(True)
    try:
        for kind, descriptors in dispatcher.get_capture_descs():
            runner._capture_cudagraphs(descriptors, kind)
    finally:
        set_cudagraph_capturing_enabled(False)
    return _sizes_v1(model)


def _plain(model: Any) -> Any:
    return _plain(model.unwrap()) if hasattr(type(model), "unwrap") else model


def _sizes_v1(model: Any) -> dict[str, int]:
    full = vars(model).get("concrete_cudagraph_entries", {})
    sizes = {f"FULL {key.num_tokens}": len(one.cudagraph.recorder.operators) for key, one in full.items()}
    inner = vars(model).get("runnable") if full else model
    broken = vars(inner).get("entries", {}) if inner is not None else {}
    return sizes | {f"PIECEWISE {key.num_tokens}": one.capture.num_graphs for key, one in broken.items()}
