"""Tables of accuracy against the share kept, from the demo model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_prune.budget.fields import DEFAULT_CHOICES, DEFAULT_KV_STRATEGY, DEFAULT_STRATEGY
from vllm_prune.catalogue import KV

from ..quality import INSIDE
from .files import NOT_MEASURED, read, table

DEFAULTS = {"visual": DEFAULT_STRATEGY["image"], "video": DEFAULT_STRATEGY["video"], "kv": DEFAULT_KV_STRATEGY}
CHOSEN_INSIDE = {"video"} if DEFAULT_CHOICES["video"][0].options.get("where") == "auto" else set[str]()
"""Parts whose default chooses inside the vision tower where that can be cut."""

_VARIANTS = "`@tower` chooses inside the vision tower, `@members` merges with `positions: 8`."
TITLES = {"visual": "visual tokens of images", "video": "visual tokens of videos", "kv": "cached rows"}


def accuracy(results: Path, part: str, strategy: str, keep: float | None) -> float | None:
    """Share of right answers over all tasks, in [0, 1], None if not measured; `keep` is None for unpruned requests."""
    rows = read(results / "quality.json")["rows"]
    wanted = {"group": "all", "part": part, "strategy": strategy, "keep": 1.0 if keep is None else keep}
    row = next((row for row in rows if row["n"] and wanted.items() <= row.items()), None)
    return None if row is None else float(row["accuracy"])


def default_of(results: Path, part: str, keep: float) -> str:
    """A part's default strategy as the table names it: inside the tower where it chooses there and was measured."""
    measured = [name for name in _defaults_of(part) if accuracy(results, part, name, keep) is not None]
    return measured[-1] if measured else DEFAULTS[part]


def percent(share: float | None, digits: int = 1) -> str:
    """A share in percent."""
    return "not measured" if share is None else f"{share:.{digits}%}"


def budgets(results: Path) -> str:
    """Right answers per ratio: the default strategy of each part beside random, and beside resizing where measured."""
    result = read(results / "quality.json")
    if result is None:
        return NOT_MEASURED
    rows = [row for row in result["rows"] if row["n"] and row["group"] == "all"]
    by_arm = {(row["part"], row["strategy"], row["keep"]): f"{row['accuracy']:.0%}" for row in rows}
    keeps = sorted({row["keep"] for row in rows if row["strategy"] != "unpruned"}, reverse=True)
    compared = [(part, name) for part in TITLES for name in (*_defaults_of(part), "random", "resize")]
    arms = [(part, name) for part, name in compared if any((part, name, keep) in by_arm for keep in keeps)]
    head = ["kept", *(f"{TITLES[part]}, `{name}`" for part, name in arms)]
    whole = {part: accuracy(results, "none" if part == "visual" else part, "unpruned", None) for part in TITLES}
    lines = [["all", *(percent(whole[part], 0) for part, _ in arms)]]
    lines += [[f"{keep:.0%}", *(by_arm.get((part, name, keep), "-") for part, name in arms)] for keep in keeps]
    return table(head, lines) + (
        f"\n\nRight answers of the demo model, {result['samples']} held-out samples of each task, "
        f"{result['hardware']['device']}. Command: `{result['command']}`.{_later(result)}"
    )


def _defaults_of(part: str) -> tuple[str, ...]:
    """A part's default strategy, and where it chooses inside the tower that as well."""
    return (DEFAULTS[part], f"{DEFAULTS[part]}{INSIDE}") if part in CHOSEN_INSIDE else (DEFAULTS[part],)


def _later(result: dict[str, Any]) -> str:
    """Which strategies a later run has measured, and by which command."""
    by_command: dict[str, list[str]] = {}
    for name, command in result.get("later", {}).items():
        by_command.setdefault(command, []).append(f"`{name.partition(':')[2]}`")
    runs = [f"{', '.join(dict.fromkeys(names))} by `{command}`" for command, names in by_command.items()]
    return f" Measured later, in the same way: {'; '.join(runs)}." if runs else ""


def tables(results: Path) -> str:
    """All strategies at all ratios, and one ratio per task."""
    result = read(results / "quality.json")
    if result is None:
        return NOT_MEASURED
    measured = [row for row in result["rows"] if row["n"]]
    whole = [row for row in measured if row["group"] == "all"]
    blocks = []
    for part, title in TITLES.items():
        rows = [row for row in whole if row["part"] == part and row["strategy"] != "unpruned"]
        blocks.append(_by_ratio(f"right answers, {title} kept", rows))
    blocks += [_by_task(measured, part, keep) for part, keep in (("visual", 0.25), ("kv", 0.2))]
    unpruned = {row["part"]: row["accuracy"] for row in whole if row["strategy"] == "unpruned"}
    again, tasks = result["repeated"], ", ".join(result["tasks"])
    text = (
        f"Demo model, {result['samples']} held-out samples of each task ({tasks}; a third as many of `detail`), "
        f"greedy, {result['dtype']}. Unpruned it answers {unpruned['none']:.1%} of the image tasks right, "
        f"{unpruned['video']:.1%} of the videos, and {unpruned['kv']:.1%} in the tables of cached rows, where answers "
        f"begin with a line break, so that they are decided after the eviction. In brackets the 95% interval of the "
        f"paired difference to `random` at the same ratio, in points. {_VARIANTS} `{again['arm']}` was asked twice: "
        f"{again['texts_that_differ']} texts differ. {_layered(whole)}{result['hardware']['device']}, vLLM "
        f"{result['hardware']['vllm']}. Command: `{result['command']}`.{_later(result)}"
    )
    picture = "![Accuracy against the share kept](../benchmarks/results/quality.png)"
    return "\n\n".join([*blocks, picture, text])


def _layered(rows: list[dict[str, Any]]) -> str:
    measured = {row["strategy"] for row in rows}
    names = [f"`{name}`" for name in KV.names() if name in measured and KV.strategy_class(name).layered]
    if not names:
        return ""
    return (
        f"{' and '.join(names)} ran with two groups of two layers. `visual_exit` keeps all rows of the first and all "
        f"text in the second, whatever the ratio, so it kept more than half of the rows in each column. "
    )


def _by_task(rows: list[dict[str, Any]], part: str, keep: float) -> str:
    inside = [row for row in rows if row["part"] == part and row["keep"] == keep]
    tasks = sorted({row["group"] for row in inside} - {"all"})
    shares = {(row["strategy"], row["group"]): f"{row['accuracy']:.0%}" for row in inside}
    before = {row["group"]: row["accuracy"] for row in rows if row["strategy"] == "unpruned"}
    kind = "visual tokens" if part == "visual" else "cached rows"
    lines = [["unpruned", *(f"{before[task]:.0%}" for task in tasks)]]
    names = dict.fromkeys(row["strategy"] for row in inside)
    lines += [[f"`{name}`", *(shares.get((name, task), "not measured") for task in tasks)] for name in names]
    return table([f"{keep:.0%} of the {kind}, by task", *tasks], lines)


def resizing(results: Path) -> str:
    """Every strategy beside plain resizing, where elements are larger than a visual token."""
    result = read(results / "resizing.json")
    if result is None:
        return NOT_MEASURED
    rows = [row for row in result["rows"] if row["n"] and row["group"] == "all"]
    blocks = [
        _by_ratio(f"right answers, {TITLES[part]} kept", [row for row in rows if row["part"] == part], "resize")
        for part in ("visual", "video")
    ]
    unpruned = {row["part"]: f"{row['accuracy']:.1%}" for row in result["rows"] if row["strategy"] == "unpruned"}
    text = (
        f"A checkpoint of the demo model that was taught elements of any size; {result['samples']} held-out screens "
        f"and as many clips, elements of 2 x 2 visual tokens, greedy, {result['dtype']}. Unpruned it answers "
        f"{unpruned['none']} of the screens and {unpruned['video']} of the clips right. In brackets the 95% interval "
        f"of the paired difference to `resize` at the same ratio, in points. {_VARIANTS} "
        f"{result['hardware']['device']}, vLLM {result['hardware']['vllm']}. Command: `{result['command']}`."
    )
    return "\n\n".join([*blocks, text])


def _by_ratio(title: str, rows: list[dict[str, Any]], baseline: str = "random") -> str:
    rows = [row for row in rows if row["strategy"] != "unpruned"]
    keeps = sorted({row["keep"] for row in rows}, reverse=True)
    shares = {(row["strategy"], row["keep"]): _share(row, baseline) for row in rows}
    names = dict.fromkeys(row["strategy"] for row in rows)
    lines = [[f"`{name}`", *(shares.get((name, keep), "not measured") for keep in keeps)] for name in names]
    return table([title, *(f"{keep:.0%}" for keep in keeps)], lines)


def _share(row: dict[str, Any], baseline: str) -> str:
    low, high = row.get(f"over_{baseline}_low"), row.get(f"over_{baseline}_high")
    if row["strategy"] == baseline or low is None or high is None:
        return f"{row['accuracy']:.1%}"
    return f"{row['accuracy']:.1%} ({100 * low:+.0f} to {100 * high:+.0f})"


def demo(path: Path) -> str:
    """One sentence from the demo model's evaluation."""
    result = read(path)
    if result is None:
        return NOT_MEASURED
    tasks = {name: row for name, row in result["tasks"].items() if "/" not in name}
    shares = ", ".join(
        f"{name} {row['accuracy']:.1%} ({row['interval'][0]:.1%} to {row['interval'][1]:.1%})"
        for name, row in tasks.items()
    )
    fewest = min(row["n"] for row in tasks.values())
    return (
        f"Unpruned, the demo model's right answers on {fewest} held-out samples of each task (95% interval): {shares}."
    )


def evaluation(path: Path) -> str:
    """Accuracy per task and kind."""
    result = read(path)
    if result is None:
        return NOT_MEASURED
    head = ["held-out samples", "visual tokens", "n", "right", "accuracy", "95% interval"]
    lines = []
    for name, row in result["tasks"].items():
        low, high = row["interval"]
        tokens = "{} to {}".format(*row["tokens"])
        title = name if "/" in name else f"**{name}**"
        shares = [f"{row['accuracy']:.1%}", f"{low:.1%} to {high:.1%}"]
        lines.append([title, tokens, f"{row['n']}", f"{row['right']}", *shares])
    return table(head, lines) + (
        f"\n\nUnpruned, greedy, transformers {result['transformers']}, {result['hardware']}: `{result['command']}`."
    )
