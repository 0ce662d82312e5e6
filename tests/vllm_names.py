"""Names of vLLM that only tests use, and that supported versions keep in different places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm_prune.vllm_compat.signatures import Home, VllmSignature

ARG_PARSER = VllmSignature(
    "vllm.entrypoints.common.cli_args",
    "make_arg_parser",
    ("parser",),
    older=(Home("vllm.entrypoints.launchers.cli_args", "make_arg_parser", ("parser",)),),
)
PREFIX_RANGES = VllmSignature(
    "vllm.v1.attention.backends.utils",
    "compute_mm_prefix_ranges",
    ("mm_features_per_req",),
    older=(Home("vllm.v1.worker.gpu.attn_utils", "compute_mm_prefix_ranges", ("req_ids", "mm_features")),),
)


def make_arg_parser(parser: Any) -> Any:
    """vLLM's parser of `vllm serve`."""
    return ARG_PARSER.load()(parser)


def prefix_ranges(features: Sequence[Any]) -> list[tuple[int, int]]:
    """First and last position of the spans of one request whose tokens attend in both directions.

    Args:
        features: the request's media, as vLLM's `MultiModalFeatureSpec`.
    """
    compute = PREFIX_RANGES.load()
    newest = PREFIX_RANGES.home() == PREFIX_RANGES.homes[0]
    [ranges] = (compute([features]) if newest else compute(["request"], {"request": features})).values()
    return list(ranges)
