"""Prometheus metrics, named by the contract. They are created on first use, in whichever process that is.

The engine and its workers run in processes of their own; with `PROMETHEUS_MULTIPROC_DIR` set (our
launcher does) vLLM's `/metrics` adds them up. Names never start with `vllm:`, which vLLM unregisters.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
RATIOS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SECONDS = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
FETCH_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_model_name = "unknown"


def set_model_name(name: str) -> None:
    """Value of the `model_name` label in this process."""
    global _model_name
    _model_name = name


@lru_cache
def _counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
    return Counter(f"vllm_prune_{name}", text, ("model_name", *labels))


@lru_cache
def _histogram(name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
    return Histogram(f"vllm_prune_{name}", text, ("model_name", *labels), buckets=buckets)


@lru_cache
def _gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
    return Gauge(f"vllm_prune_{name}", text, ("model_name", *labels), multiprocess_mode="livesum")


def count_visual(modality: str, strategy: str, before: int, kept: int) -> None:
    """Tokens of one item before and after pruning."""
    labels = (_model_name, modality, strategy)
    by = ("modality", "strategy")
    _counter("visual_tokens_input", "Visual tokens before pruning.", by).labels(*labels).inc(before)
    _counter("visual_tokens_kept", "Visual tokens handed to the language model.", by).labels(*labels).inc(kept)


def observe_request(before: int, kept: int) -> None:
    """Visual tokens of one request and the ratio kept."""
    tokens = _histogram("request_visual_tokens", "Visual tokens per request.", ("stage",), TOKENS)
    tokens.labels(_model_name, "input").observe(before)
    tokens.labels(_model_name, "kept").observe(kept)
    ratio = _histogram("keep_ratio", "Share of tokens kept per request.", ("part",), RATIOS)
    ratio.labels(_model_name, "visual").observe(kept / before)


def observe_score(part: str, strategy: str, seconds: float) -> None:
    """Time a strategy took for one item. On a GPU this is launch time; the work overlaps the step."""
    _histogram("score_seconds", "Seconds spent choosing tokens.", ("part", "strategy"), SECONDS).labels(
        _model_name, part, strategy
    ).observe(seconds)


def count_feature_lookup(result: str, times: int = 1) -> None:
    """An item that a worker has looked up among the tower's outputs; `result` is "hit" or "miss"."""
    _counter("feature_cache_lookups", "Items looked up among the vision tower's outputs.", ("result",)).labels(
        _model_name, result
    ).inc(times)


def set_feature_cache_bytes(size: int) -> None:
    """Memory that the kept outputs of the vision tower take in this worker."""
    _gauge("feature_cache_bytes", "Bytes of the vision tower's outputs that workers keep.").labels(_model_name).set(
        size
    )


def count_compaction(strategy: str, evicted: int, freed: int, times: int = 1) -> None:
    """Compactions that the outputs of a request report."""
    for name, text, amount in (
        ("kv_compactions", "Compactions of requests' KV cache.", times),
        ("kv_tokens_evicted", "Rows evicted from the KV cache, per layer and head.", evicted),
        ("kv_blocks_freed", "KV cache blocks given back to the pool by compactions.", freed),
    ):
        _counter(name, text, ("strategy",)).labels(_model_name, strategy).inc(amount)


def count_group_blocks(first_layer: int, freed: int) -> None:
    """Blocks that compactions have given back in one of several groups of layers."""
    text = "KV cache blocks given back to the pool by compactions, per group of layers."
    _counter("kv_group_blocks_freed", text, ("first_layer",)).labels(_model_name, str(first_layer)).inc(freed)


def count_kv_skipped(reason: str, times: int = 1) -> None:
    """A compaction that was due and did not happen; `reason` is one of a fixed set."""
    _counter("kv_eviction_skipped", "Compactions that were due and did not happen.", ("reason",)).labels(
        _model_name, reason
    ).inc(times)


def observe_compaction(seconds: float) -> None:
    """Time that a worker took for one compaction, scoring included, over all layers."""
    _histogram("compaction_seconds", "Seconds spent on a compaction.", (), SECONDS).labels(_model_name).observe(seconds)


def observe_kv_ratio(ratio: float) -> None:
    """Share of the prompt's rows that a request's budget keeps."""
    _histogram("keep_ratio", "Share of tokens kept per request.", ("part",), RATIOS).labels(_model_name, "kv").observe(
        ratio
    )


def count_rejection(reason: str, times: int = 1) -> None:
    """A request refused before any work; `reason` is one of a fixed set."""
    _counter("rejections", "Requests refused before any work.", ("reason",)).labels(_model_name, reason).inc(times)


def count_media_rejected(reason: str, times: int = 1) -> None:
    """Media refused while they were fetched or decoded; `reason` is one of a fixed set."""
    _counter("media_rejected", "Media refused while fetched or decoded.", ("reason",)).labels(_model_name, reason).inc(
        times
    )


def observe_fetch(seconds: float) -> None:
    """Time that the download of one item took, redirects included, whether it came or not."""
    _histogram("media_fetch_seconds", "Seconds spent on downloading one item.", (), FETCH_SECONDS).labels(
        _model_name
    ).observe(seconds)


def observe_decode(modality: str, seconds: float) -> None:
    """Time that one item waited for a decoding process to be through with it."""
    _histogram("media_decode_seconds", "Seconds spent on decoding one item.", ("modality",), SECONDS).labels(
        _model_name, modality
    ).observe(seconds)


def count_clamped(reason: str, times: int = 1) -> None:
    """A budget lowered to the operator's limit."""
    _counter("budget_clamped", "Budgets changed to fit the operator's limits.", ("reason",)).labels(
        _model_name, reason
    ).inc(times)


def publish_build(version: str, vllm: str, verified: bool) -> None:
    """One constant series with the versions in use."""
    _gauge("build_info", "Versions; 1 when the self-check passed.", ("version", "vllm")).labels(
        _model_name, version, vllm
    ).set(1 if verified else 0)


def inflight(delta_requests: int, delta_tokens: int = 0) -> None:
    """Requests, and visual tokens granted to them, that are being answered."""
    _gauge("inflight_requests", "Requests being answered.").labels(_model_name).inc(delta_requests)
    _gauge("inflight_visual_tokens", "Kept visual tokens of the requests being answered.").labels(_model_name).inc(
        delta_tokens
    )


def set_waiting(requests: int) -> None:
    """Requests that wait to be admitted."""
    _gauge("waiting_requests", "Requests that wait for room.").labels(_model_name).set(requests)


def served_name(model_config: Any) -> str:
    """The name clients use for the model."""
    name = model_config.served_model_name
    return str(name[0] if isinstance(name, list) else name or model_config.model)
