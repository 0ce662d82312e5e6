"""What metrics and `vllm-prune bench` build on; neither is needed to serve a budget."""

from __future__ import annotations

from .entry import VllmSignature

_FILES = "prometheus_client.mmap_dict"
METRICS_SIGNATURES: tuple[VllmSignature, ...] = (
    VllmSignature("prometheus_client.values", "MmapedDict", ("filename", "read_mode")),
    VllmSignature(_FILES, "MmapedDict._init_value", ("key",)),
)

_BENCH = "vllm.benchmarks"
BENCH_SIGNATURES: tuple[VllmSignature, ...] = (
    VllmSignature(
        f"{_BENCH}.serve", "benchmark", ("endpoint_type", "input_requests", "request_rate", "ready_check_timeout_sec")
    ),
    VllmSignature(f"{_BENCH}.datasets", "SampleRequest", ("request_id", "chat_messages", "request_overrides")),
    VllmSignature(
        f"{_BENCH}.lib.endpoint_request_func",
        "async_request_openai_chat_completions",
        ("request_func_input", "session", "pbar"),
    ),
)
"""What `vllm-prune bench` builds on; a server does without."""
