"""What of a server's configuration keeps us from looking into its vision tower, or from cutting inside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def obstacles(vllm_config: Any) -> Iterator[str]:
    """What keeps us from looking into the tower while it runs."""
    if getattr(vllm_config.compilation_config, "cudagraph_mm_encoder", False):
        yield "the encoder's graphs"
    yield from cut_obstacles(vllm_config)


def cut_obstacles(vllm_config: Any) -> Iterator[str]:
    """What keeps us from cutting inside the tower; the encoder's graphs do not, as a cut has some of its own."""
    compilation, mm = vllm_config.compilation_config, vllm_config.model_config.multimodal_config
    if getattr(compilation, "compile_mm_encoder", False):
        yield "a compiled encoder"
    if mm.mm_encoder_tp_mode == "data":
        yield "data-parallel encoding"


def takes_no_cut(vllm_config: Any) -> bool:
    """Whether the tower's attention backend cannot run on survivors alone."""
    return "FLASHINFER" in str(vllm_config.model_config.multimodal_config.mm_encoder_attn_backend)
