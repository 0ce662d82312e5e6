"""Tables of docs/benchmarks.md about time, throughput and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..kv import R_KV, pool_share
from .files import NOT_MEASURED, read, table


def off_cost(results: Path) -> str:
    """A paragraph for a family with positions on a grid, and one for a family with one position per token."""
    kinds = {"off_cost.json": "Qwen2.5-VL", "off_cost_one_row.json": "InternVL, whose tokens have one position each"}
    return "\n\n".join(_off_cost(results / name, family) for name, family in kinds.items())


def _off_cost(path: Path, family: str) -> str:
    result = read(path)
    if result is None:
        return f"{family}: {NOT_MEASURED}"
    latency, cpu = result["stock_over_off"]["latency"], result["stock_over_off"]["cpu"]
    return (
        f"{family}: requests without a budget, alternating one by one between stock vLLM and vllm-prune "
        f"({result['setting']['pairs']} pairs, {result['setting']['visual_tokens']} visual tokens, "
        f"{result['hardware']['device']}): stock's time divided by ours is {latency['ratio']:.3f} (95% interval "
        f"{latency['low']:.3f} to {latency['high']:.3f}), its processor time divided by ours {cpu['ratio']:.3f} "
        f"({cpu['low']:.3f} to {cpu['high']:.3f}). 1 is equal; above 1 ours is faster. "
        f"Command: `{result['command']}`."
    )


def kv_speed(results: Path) -> str:
    """Table and one paragraph of `kv.json`."""
    result = read(results / "kv.json")
    if result is None:
        return NOT_MEASURED
    setting, hardware, long = result["setting"], result["hardware"], result["long"]
    tight, ample = result["tight"], result["ample"]
    pools = {"tight": f"two full requests ({tight['blocks']} blocks)", "ample": "all requests"}
    head = [
        "the cache has room for", "requests/s", "running requests while others wait", "running requests, peak",
        "time spent compacting",
    ]  # fmt: skip
    return table(head, (_kv_row(pools[name], result[name]) for name in pools)) + (
        f"\n\nOne answer of {long['tokens']} tokens: the time between tokens at its end is "
        f"{long['prune']['end_over_start']:.2f}x that at its start; on stock vLLM "
        f"{long['stock']['end_over_start']:.2f}x.\n\n"
        f"![Time between tokens along a long answer, and both cache sizes](../benchmarks/results/kv.png)\n\n"
        f"{result['parameters'] / 1e6:.0f}M random weights, {setting['screens']} screenshots of "
        f"{setting['visual_tokens']} visual tokens per request, {tight['requests']} requests at once with answers of "
        f"{tight['tokens']} tokens (large cache: {ample['requests']} requests, {ample['tokens']} tokens), "
        f"`gui_kv` keeping {setting['keep']:.0%}, {hardware['device']}, vLLM {hardware['vllm']}. Ratios to stock vLLM, "
        f"which ran side by side and took turns; medians of {setting['rounds']} rounds. Command: `{result['command']}`."
        f"\n\n{_crossover(result)}"
    )


def _crossover(result: dict[str, Any]) -> str:
    """Beside what R-KV's port to vLLM publishes."""
    ours = ", ".join(
        f"{result[name]['throughput_ratio']:.2f}x at {pool_share(result[name]):.0%}" for name in ("ample", "tight")
    )
    theirs = ", ".join(f"{ratio:.2f}x at {share:.0%}" for share, ratio in R_KV.items())
    return (
        f"Where eviction begins to pay: R-KV's port to vLLM publishes {theirs} of all requests' rows in the cache "
        f"(Qwen2.5-Math-7B, one H100, text, prefix caching off), so it costs 12% where the cache holds everything. "
        f"Ours above: {ours}, with prefix caching on. Their figures are theirs, from other hardware and another model; "
        f"what can be compared is where the lines cross 1."
    )


def _kv_row(name: str, row: dict[str, Any]) -> list[str]:
    ratios = (row["throughput_ratio"], row["concurrency_ratio"], row["peak_ratio"])
    return [name, *(f"{ratio:.2f}x" for ratio in ratios), f"{row['compaction_share']:.1%}"]


def soak(results: Path) -> str:
    """One paragraph of `soak.json`."""
    result = read(results / "soak.json")
    if result is None:
        return NOT_MEASURED
    outcomes, growth = result["outcomes"], result["memory_mib"]["all"]
    return (
        f"{result['requests']:,} requests of mixed budgets at {result['concurrency']} in flight, in "
        f"{result['seconds']:.0f} s on {result['hardware']['device']}: {outcomes['answered 200']:,} answered, "
        f"{outcomes['left']} clients left on purpose, {outcomes['refused']} refused on purpose. "
        f"{result['compared']} answers were compared with those of an idle server: {result['wrong_count']} differ. "
        f"Afterwards {result['running']:.0f} requests were running and {result['cache_in_use']:.0%} of the cache was "
        f"in use; the memory of all processes went from {growth['first']:.0f} to {growth['last']:.0f} MiB. "
        f"Command: `{result['command']}`."
    )
