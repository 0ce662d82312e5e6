"""Tables of visual and KV budgets beside stock vLLM and its own pruning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import NOT_MEASURED, read, table

HEAD = [
    "arm", "kept visual tokens", "requests/s, stock = 1", "of the bound", "first token, stock = 1",
    "between tokens p50, p95, p99 ms", "goodput", "KV cache, peak", "choosing", "compacting", "processor s/request",
]  # fmt: skip


def speed(results: Path) -> str:
    """Table and one paragraph of `speed.json`."""
    result = read(results / "speed.json")
    if result is None:
        return NOT_MEASURED
    setting, hardware = result["setting"], result["hardware"]
    head = ["", "prompt tokens", "speed-up to the first token", "requests/s under load"]
    bounds = any(row.get("ttft_bound") for row in result["rows"])
    said = " In brackets the share of what arithmetic allows, and that bound." if bounds else ""
    return table(head, map(_few_row, result["rows"])) + (
        f"\n\n{result['parameters'] / 1e6:.0f}M random weights (Qwen2.5-VL architecture), one screenshot of "
        f"{setting['visual_tokens']} visual tokens per request, `{setting['strategy']}`, {hardware['device']}, vLLM "
        f"{hardware['vllm']}. Stock vLLM and vllm-prune ran side by side and took turns. The figures are medians of "
        f"{setting['rounds']} per-round ratios to stock: time to the first token of one request alone, and throughput "
        f"at {setting['concurrency']} requests in flight.{said} Command: `{result['command']}`."
    )


def _few_row(row: dict[str, Any]) -> list[str]:
    if row["arm"] == "stock":
        return ["stock vLLM", f"{row['prompt_tokens']}", "1.00x", "1.00x"]
    ratios = (_bounded(row[f"{name}_ratio"], row.get(f"{name}_bound")) for name in ("ttft", "throughput"))
    return [f"vllm-prune, {row['arm']}", f"{row['prompt_tokens']}", *ratios]


def _bounded(ratio: float, bound: float | None) -> str:
    return f"{ratio:.2f}x" if bound is None else f"{ratio:.2f}x ({ratio / bound:.0%} of {bound:.2f}x)"


def matrix(results: Path, prefix: str = "", weights: str = "random weights (Qwen2.5-VL architecture)") -> str:
    """One table for each load of a result of `benchmarks.speed --matrix`, the plot, and how it was measured.

    Args:
        results: folder of the results.
        prefix: what the name of the file begins with.
        weights: which ones are counted, of which model.
    """
    name = f"{prefix}speed_matrix"
    result = read(results / f"{name}.json")
    if result is None:
        return "The tables are written by `python -m benchmarks.speed --matrix --save`."
    hardware = result["hardware"]
    parts = [_load(cell) for cell in result["loads"]]
    parts.append(f"![Throughput of every arm, beside its bound](../benchmarks/results/{name}.png)")
    parts.append(
        f"{result['parameters'] / 1e6:.0f}M {weights}, {hardware['device']}, vLLM "
        f"{hardware['vllm']}. All servers of a load ran side by side and took turns, with one allocator and one OpenMP "
        "runtime. Throughput is the median of the per-round ratios to stock (lowest to highest). Behind the tower "
        "images and videos are pruned by their default strategies, in it by `divprune`. The bound is the least time "
        "by operations and bytes, at the speeds of a large matrix product and of a copy on the same machine; it has no "
        "part for the processor, HTTP, norms or the choice itself. Goodput counts requests whose first token came "
        f"within stock's median. Commands, and these speeds: {'; '.join(_runs(result['loads']))}."
    )
    return "\n\n".join(parts)


def matrix_vidcom2(results: Path) -> str:
    """The same of Qwen3-VL, for which vLLM has VidCom2."""
    return matrix(results, "qwen3_vl_", "random weights in its layers (Qwen3-VL architecture)")


def _runs(cells: list[dict[str, Any]]) -> list[str]:
    """Every run that loads come from, once."""
    runs = {}
    for cell in cells:
        speeds = cell["speeds"]
        runs[f"`{cell['command']}`, {speeds['flops'] / 1e9:,.0f} GFLOP/s and {speeds['bytes'] / 1e9:.1f} GB/s"] = None
    return list(runs)


def _load(cell: dict[str, Any]) -> str:
    counted = f"medians of {cell['rounds']} rounds of {cell['requests']} requests"
    title = (
        f"**{cell['workload']}, {cell['concurrency']} in flight**: {cell['visual_tokens']:,} visual tokens, answers of "
        f"{cell['answer_tokens']} tokens, {counted}."
    )
    if not cell["rows"]:
        return f"{title} No round was whole."
    left_out = "".join(f" Left out, as it failed: {name}." for name in cell["errors"])
    return f"{title}{left_out}\n\n{table(HEAD, map(_row, cell['rows']))}"


def _row(row: dict[str, Any]) -> list[str]:
    kept, gaps = row["kept_visual_tokens"], [row[f"itl_p{p}_ms"] for p in (50, 95, 99)]
    throughput = f"{row['throughput_ratio']:.2f}x ({row['throughput_lowest']:.2f} to {row['throughput_highest']:.2f})"
    bound = f"{row['share_of_ratio_bound']:.0%} of {row['ratio_bound']:.2f}x" if "ratio_bound" in row else "-"
    return [
        row["arm"], "-" if kept is None else f"{kept:,.0f}", throughput, bound, f"{row['ttft_ratio']:.2f}x",
        "-" if None in gaps else ", ".join(f"{gap:.0f}" for gap in gaps), f"{row['goodput']:.2f}/s",
        f"{row['kv_peak']:.0%}", f"{row['scoring_share']:.1%}", f"{row['compaction_share']:.1%}",
        f"{row['processor_seconds_per_request']:.2f}",
    ]  # fmt: skip
