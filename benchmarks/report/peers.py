"""The table of other libraries on the KV task."""

from __future__ import annotations

from pathlib import Path

from .files import read, table


def peers(results: Path) -> str:
    """One row for each method, both sides beside each other."""
    result = read(results / "peers.json")
    if result is None:
        return "The table is written by `python -m benchmarks.peers --save`."
    by_case = {(row["side"], row["method"]): row for row in result["rows"]}
    sides = list(dict.fromkeys(row["side"] for row in result["rows"]))
    lines = []
    for method in dict.fromkeys(row["method"] for row in result["rows"]):
        rows = [by_case[side, method] for side in sides]
        right = [f"{row['right'] / row['n']:.1%} ({row['right']} of {row['n']})" for row in rows]
        name = "all rows kept" if method == "none" else f"`{method}`"
        lines.append([name, *right, *(f"{row['ms']:.0f} ms" for row in rows)])
    head = ["method", *(f"right answers, {side}" for side in sides), *(f"per request, {side}" for side in sides)]
    versions = ", ".join(f"{name} {version}" for name, version in result["peer"].items())
    return table(head, lines) + (
        f"\n\nkvpress under transformers ({versions}), vllm-prune as a server on vLLM {result['hardware']['vllm']}; "
        f"demo model, {result['samples']} held-out samples of each image task (a third as many of `detail`), one "
        f"request at a time, {result['keep']:.0%} of the prompt's rows kept, window {result['window']}, float32, "
        f"answers behind a line break. Milliseconds are medians of whole requests, on our side with HTTP. "
        f"{result['hardware']['device']}. Command: `{result['command']}`."
    )
