"""Peaks that are read from a server's metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from vllm_prune.bench.watch import Watch


def test_peaks_over_several_readings() -> None:
    registry, watch = CollectorRegistry(), Watch("http://server", {})
    usage = Gauge("vllm:kv_cache_usage_perc", "", ["engine"], registry=registry)
    running = Gauge("vllm:num_requests_running", "", ["engine"], registry=registry)
    preemptions = Counter("vllm:num_preemptions", "", ["engine"], registry=registry)
    Gauge("vllm:num_requests_waiting", "", registry=registry).set(9)
    for engine in "01":
        preemptions.labels(engine).inc(2)
    for share, requests in ((0.25, 3), (0.5, 1), (0.125, 2)):
        usage.labels("0").set(share)
        for engine in "01":
            running.labels(engine).set(requests)
        watch._take(generate_latest(registry).decode())
        preemptions.labels("1").inc()
    assert vars(watch.peaks) == {"kv_usage": 0.5, "running": 6, "preemptions": 2, "samples": 3}
