"""Fill the generated parts of the README and of the demo model's card: `python -m benchmarks.report`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from vllm_prune.catalogue import KV, VISUAL, markdown

from .stts.report import frame_split
from .stts.report import section as stts

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
DEMO = Path(__file__).parent / "demo_model"
PAGES = (ROOT / "README.md", DEMO / "README.md")


def fill(text: str) -> str:
    """A page with its generated parts replaced."""
    parts = {
        "catalogue": markdown(VISUAL),
        "kv_catalogue": markdown(KV),
        "speed": speed(),
        "off_cost": off_cost(),
        "kv_speed": kv_speed(),
        "demo": demo(),
        "stts": stts(RESULTS),
        "frame_split": frame_split(RESULTS),
        "quality": quality(),
        "evaluation": evaluation(),
    }
    for name, body in parts.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = re.sub(pattern, lambda found, body=body: f"{found[1]}{body}\n{found[2]}", text, flags=re.DOTALL)
    return text


def speed() -> str:
    """Table and one paragraph of `benchmarks/results/speed.json`."""
    path = RESULTS / "speed.json"
    if not path.exists():
        return "Not measured yet."
    result = json.loads(path.read_text())
    setting, hardware = result["setting"], result["hardware"]
    lines = [
        "| | prompt tokens | speed-up to the first token | requests/s under load |",
        "|---|---|---|---|",
        *(_speed_row(row) for row in result["rows"]),
        "",
        f"{result['parameters'] / 1e6:.0f}M random-weight parameters (Qwen2.5-VL architecture), one screenshot of "
        f"{setting['visual_tokens']} visual tokens per request, `{setting['strategy']}`, {hardware['device']}, vLLM "
        f"{hardware['vllm']}. Stock vLLM and vllm-prune ran side by side and took turns; the figures are medians of "
        f"{setting['rounds']} per-round ratios to stock (TTFT of one request alone; throughput at "
        f"{setting['concurrency']} in flight). Command: `{result['command']}`.",
    ]
    return "\n".join(lines)


def _speed_row(row: dict[str, Any]) -> str:
    if row["arm"] == "stock":
        return f"| stock vLLM | {row['prompt_tokens']} | 1.00x | 1.00x |"
    return (
        f"| vllm-prune, {row['arm']} | {row['prompt_tokens']} | {row['ttft_ratio']:.2f}x "
        f"| {row['throughput_ratio']:.2f}x |"
    )


def off_cost() -> str:
    """One sentence of `benchmarks/results/off_cost.json`."""
    path = RESULTS / "off_cost.json"
    if not path.exists():
        return "Not measured yet."
    result = json.loads(path.read_text())
    latency, cpu = result["stock_over_off"]["latency"], result["stock_over_off"]["cpu"]
    return (
        f"Requests that ask for nothing, alternating one by one between stock vLLM and vllm-prune "
        f"({result['setting']['pairs']} pairs, {result['setting']['visual_tokens']} visual tokens): stock's time over "
        f"ours is {latency['ratio']:.3f} (95% interval {latency['low']:.3f} to {latency['high']:.3f}), its processor "
        f"time over ours {cpu['ratio']:.3f} ({cpu['low']:.3f} to {cpu['high']:.3f}); 1 is equal, above 1 ours is "
        f"faster. Command: `{result['command']}`."
    )


def kv_speed() -> str:
    """Table and one paragraph of `benchmarks/results/kv.json`."""
    path = RESULTS / "kv.json"
    if not path.exists():
        return "Not measured yet."
    result = json.loads(path.read_text())
    setting, hardware, long = result["setting"], result["hardware"], result["long"]
    tight, ample = result["tight"], result["ample"]
    pools = {"tight": f"two full requests ({tight['blocks']} blocks)", "ample": "ample"}
    lines = [
        "| pool | requests/s | running requests while others wait | running requests, peak | time spent compacting |",
        "|---|---|---|---|---|",
        *(_kv_row(pools[name], result[name]) for name in pools),
        "",
        f"One answer of {long['tokens']} tokens: time between tokens at its end is "
        f"{long['prune']['end_over_start']:.2f}x that at its start; on stock vLLM "
        f"{long['stock']['end_over_start']:.2f}x.",
        "",
        "![Time between tokens along a long answer, and both pools](benchmarks/results/kv.png)",
        "",
        f"{result['parameters'] / 1e6:.0f}M random-weight parameters, {setting['screens']} screenshots of "
        f"{setting['visual_tokens']} visual tokens per request, {tight['requests']} requests at once with answers of "
        f"{tight['tokens']} tokens ({ample['requests']} and {ample['tokens']} in the ample pool), "
        f"`gui_kv` keeping {setting['keep']:.0%}, "
        f"{hardware['device']}, vLLM {hardware['vllm']}. Ratios to stock vLLM, which ran side by side and took turns; "
        f"medians of {setting['rounds']} rounds. Command: `{result['command']}`.",
    ]
    return "\n".join(lines)


def _kv_row(name: str, row: dict[str, Any]) -> str:
    return (
        f"| {name} | {row['throughput_ratio']:.2f}x | {row['concurrency_ratio']:.2f}x | {row['peak_ratio']:.2f}x "
        f"| {row['compaction_share']:.1%} |"
    )


def quality() -> str:
    """Tables and a paragraph of `benchmarks/results/quality.json`."""
    path = RESULTS / "quality.json"
    if not path.exists():
        return "Not measured yet."
    result = json.loads(path.read_text())
    # Earlier results measured screens alone and did not say so.
    measured = result.get("tasks", ["screens"])
    found = [row for row in result["rows"] if row["n"]]
    whole = [row for row in found if row["group"] == "all"]
    titles = {"visual": "visual tokens of images", "video": "visual tokens of videos", "kv": "cached rows"}
    lines: list[str] = []
    for part, title in titles.items():
        rows = [row for row in whole if row["part"] == part and row["strategy"] != "unpruned"]
        if rows:
            lines += [*_quality_table(f"right answers, {title} kept", rows), ""]
    for part, keep in (("visual", 0.25), ("kv", 0.2)) if len(measured) > 1 else ():
        lines += [*_task_table(found, part, keep), ""]
    unpruned = {row["part"]: row["accuracy"] for row in whole if row["strategy"] == "unpruned"}
    again, tasks = result["repeated"], ", ".join(measured)
    video = f", {unpruned['video']:.1%} of the videos" if "video" in unpruned else ""
    return "\n".join(
        [
            *lines,
            "![Accuracy against the share kept](benchmarks/results/quality.png)",
            "",
            f"Demo model, {result['samples']} held-out samples of each task ({tasks}; a third as many of `detail`), "
            f"greedy, {result.get('dtype', 'bfloat16')}; unpruned "
            f"{unpruned['none']:.1%} of the image tasks{video}, and {unpruned['kv']:.1%} in the tables of cached rows, "
            f"where answers begin with a line break, so that they are decided after the eviction. In brackets the 95% "
            f"interval of the paired difference to random at equal ratio, in points. `{again['arm']}` asked twice: "
            f"{again['texts_that_differ']} texts differ. {result['hardware']['device']}, vLLM "
            f"{result['hardware']['vllm']}. Command: `{result['command']}`.",
        ]
    )


def _task_table(rows: list[dict[str, Any]], part: str, keep: float) -> list[str]:
    """Accuracy per task at one ratio."""
    inside = [row for row in rows if row["part"] == part and row["keep"] == keep]
    tasks = sorted({row["group"] for row in inside} - {"all"})
    cells = {(row["strategy"], row["group"]): f"{row['accuracy']:.0%}" for row in inside}
    before = {row["group"]: row["accuracy"] for row in rows if row["strategy"] == "unpruned"}
    what = "visual tokens" if part == "visual" else "cached rows"
    head = [f"{keep:.0%} of the {what}, by task", *tasks]
    lines = [["unpruned", *(f"{before[task]:.0%}" for task in tasks)]]
    names = dict.fromkeys(row["strategy"] for row in inside)
    lines += [[f"`{name}`", *(cells[name, task] for task in tasks)] for name in names]
    return ["| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines]]


def _quality_table(title: str, rows: list[dict[str, Any]]) -> list[str]:
    keeps = sorted({row["keep"] for row in rows}, reverse=True)
    cells = {(row["strategy"], row["keep"]): _quality_cell(row) for row in rows}
    head = f"| {title} | " + " | ".join(f"{keep:.0%}" for keep in keeps) + " |"
    lines = [
        f"| `{name}` | " + " | ".join(cells.get((name, keep), "refused") for keep in keeps) + " |"
        for name in dict.fromkeys(row["strategy"] for row in rows)
    ]
    return [head, "|---" * (len(keeps) + 1) + "|", *lines]


def _quality_cell(row: dict[str, Any]) -> str:
    if row["strategy"] == "random":
        return f"{row['accuracy']:.1%}"
    return f"{row['accuracy']:.1%} ({100 * row['over_random_low']:+.0f} to {100 * row['over_random_high']:+.0f})"


def demo() -> str:
    """One sentence from the demo model's evaluation."""
    path = DEMO / "evaluation.json"
    if not path.exists():
        return "Not evaluated yet."
    tasks = {name: row for name, row in json.loads(path.read_text())["tasks"].items() if "/" not in name}
    shares = ", ".join(
        f"{name} {row['accuracy']:.1%} ({row['interval'][0]:.1%} to {row['interval'][1]:.1%})"
        for name, row in tasks.items()
    )
    n, words = min(row["n"] for row in tasks.values()), "of each task (95% interval)"
    return f"Unpruned, the demo model's right answers on {n} held-out samples {words}: {shares}."


def evaluation() -> str:
    """Accuracy per task and kind."""
    path = DEMO / "evaluation.json"
    if not path.exists():
        return "Not evaluated yet."
    found = json.loads(path.read_text())
    lines = ["| held-out samples | visual tokens | n | right | accuracy | 95% interval |", "|---|---|---|---|---|---|"]
    for name, row in found["tasks"].items():
        low, high = row["interval"]
        title = name if "/" in name else f"**{name}**"
        tokens = "{} to {}".format(*row["tokens"])
        lines.append(
            f"| {title} | {tokens} | {row['n']} | {row['right']} | {row['accuracy']:.1%} | {low:.1%} to {high:.1%} |"
        )
    lines += ["", f"Unpruned, greedy, transformers {found['transformers']}, {found['hardware']}: `{found['command']}`."]
    return "\n".join(lines)


def main() -> None:
    """Rewrite the pages."""
    for path in PAGES:
        path.write_text(fill(path.read_text()))


if __name__ == "__main__":
    main()
