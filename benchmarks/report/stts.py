"""Tables of docs/stts.md, from the files under `benchmarks/results/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..stts import account
from .files import NOT_MEASURED, read, table


def frame_split(results: Path) -> str:
    """What fixing each frame's count beforehand costs."""
    result = read(results / "frame_split.json")
    if result is None:
        return NOT_MEASURED
    keeps, rows = result["keeps"], {(row["strategy"], row["split"], row["keep"]): row for row in result["rows"]}
    heads = [f"{measure} at {keep:.0%}" for measure in ("right", "shown") for keep in keeps]
    lines = []
    for name in result["strategies"]:
        for split in ("free", *result["splits"]):
            shares = [rows[name, split, keep][measure] for measure in ("right", "shown") for keep in keeps]
            suffix = " (default)" if rows[name, split, keeps[0]]["default"] else ""
            lines.append([f"`{name}`, {split}{suffix}", *map(_difference, shares)])
    return table(["strategy, split", *heads], lines) + (
        f"\n\nShares of {result['n']} held-out videos, the same number of kept visual tokens in every row. In brackets "
        f"the 95% interval of the paired difference to the free choice over the whole video, in points. Right: greedy "
        f"answers of the demo model, which unpruned answers {result['unpruned']:.1%}. Shown: every place of the object "
        f"in question is kept in some frame, whatever the model answers. The demo model has no text between frames: "
        f"this is the cost of the choice alone. {result['hardware']['device']}. Command: `{result['command']}`."
    )


def _difference(measured: dict[str, Any]) -> str:
    share = f"{measured['share']:.1%}"
    if "over_free" not in measured:
        return share
    _, low, high = measured["over_free"]
    return f"{share} ({100 * low:+.1f} to {100 * high:+.1f})"


def accuracy(results: Path) -> str:
    """Right answers of the scorer, of its ablations and of every untrained strategy."""
    result = read(results / "stts.json")
    if result is None:
        return NOT_MEASURED
    shape = result["shape"]
    text = (
        f"Demo model, held-out samples, greedy. In brackets the 95% interval of the paired difference to the unpruned "
        f"model, in points. The scorer ({shape['hidden']} wide, after {shape['after']} block) was trained with the "
        f"model frozen, by a reward for right answers in place of the paper's gradient. `stts, ...` are other scorers "
        f"(ablations), this scorer choosing over the whole video as in the paper or with counts by pixel change, and a "
        f"model that was trained along with its scorer. Pictures are screens, rendered pages and dense screens; videos "
        f"are clips and films; `benchmarks/results/stts.json` has every task apart. "
        f"{result['hardware']['device']}. Command: `{result['command']}`."
    )
    picture = "![Accuracy against the share kept](../benchmarks/results/stts.png)"
    return "\n\n".join([*(_by_ratio(result, kind) for kind in ("pictures", "videos")), picture, text])


def _by_ratio(result: dict[str, Any], kind: str) -> str:
    rows = [row for row in result["rows"] if row["kind"] == kind]
    whole = next(row for row in rows if row["arm"] == "unpruned")
    title = f"{kind}, n = {whole['n']}"
    for row in rows:
        if row["arm"].startswith("unpruned"):
            title += f", {row['arm'].replace('unpruned,', 'unpruned and')} {row['accuracy']:.1%}"
    by_arm = {(row["arm"], row["keep"]): row for row in rows}
    arms = {row["arm"] for row in rows if not row["arm"].startswith("unpruned")}
    lines = [
        [name if "," in name else f"`{name}`", *(_share(by_arm.get((name, keep))) for keep in result["keeps"])]
        for name in sorted(arms, key=lambda arm: (not arm.startswith("stts"), arm))
    ]
    return table([title, *(f"{keep:.0%}" for keep in result["keeps"])], lines)


def _share(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    _, low, high = row["over_unpruned"]
    return f"{row['accuracy']:.1%} ({100 * low:+.1f} to {100 * high:+.1f})"


def agreement(results: Path) -> str:
    """How far the engine is from the training code."""
    result = read(results / "stts_agreement.json")
    if result is None:
        return NOT_MEASURED
    worst = result["largest_logprob_difference"]
    return (
        f"Engine against training code, {result['samples']} samples at three budgets ({result['requests']} requests, "
        f"float32): {result['kept_sets_that_differ']} kept sets and {result['answers_that_differ']} answers differ. "
        f"The largest difference of a log-probability is {worst['engine_training']:.1e}. The training code in float64 "
        f"is {worst['engine_float64']:.1e} away from the engine and {worst['training_float64']:.1e} from itself in "
        f"float32: on single pictures the model amplifies rounding. Command: `{result['command']}`."
    )


def speed(results: Path) -> str:
    """Throughput on a CPU."""
    result = read(results / "stts_speed.json")
    if result is None:
        return NOT_MEASURED
    model = result["model"]
    return _ratios(result, "throughput") + (
        f"\n\nRequests per second relative to the same engine without a budget, one video per request, medians of "
        f"{result['rounds']} interleaved rounds (lowest to highest), {result['dtype']}. "
        f"{model['parameters'] / 1e6:.0f}M random weights, {model['tower'] / 1e6:.0f}M of them in the tower, both "
        f"parts with the depth and proportions of Qwen2.5-VL-3B's; the scorer runs after {result['after']} of 32 "
        f"blocks. {result['hardware']['device']}. Command: `{result['command']}`."
    )


def gpu_account(results: Path) -> str:
    """Why the GPU's figures are what they are, by arithmetic, and what they would be without the fixed part."""
    result = read(results / "gpu_stts_speed.json")
    if result is None:
        return NOT_MEASURED
    rows = account.measured(result)
    found = account.fit(rows)
    worst = max(abs(one.fitted / one.measured - 1) for one in account.table(rows, found))
    head = ["budget", "visual tokens", "measured", "as fitted", "without the fixed part", "by operations alone"]
    lines = [
        [one.arm, f"{one.cells:,}", f"{one.measured:.2f}x", f"{one.fitted:.2f}x", f"{one.unfixed:.2f}x",
         f"{one.operations:.2f}x"]
        for one in account.table(rows, found)
    ]  # fmt: skip
    return table(head, lines) + (
        f"\n\nFitted to the {len(rows)} requests above: {found.fixed:.2f} s of each that no budget shortens, the "
        f"tower's operations at {found.tower / 1e12:,.0f} TFLOP/s, the language model's at "
        f"{found.language / 1e12:,.0f} TFLOP/s; the largest error of a request is {found.error:.0%}, of a "
        f"ratio {worst:.0%}. Operations are "
        f"counted from the shapes. The three are told apart by {len(rows)} figures only, so take them for sizes. "
        "Measured: ratio of the medians. The last two columns are predictions."
    )


def speed_reuse(results: Path) -> str:
    """Throughput on a CPU where the C library keeps freed memory."""
    result = read(results / "stts_speed_reuse.json")
    if result is None:
        return NOT_MEASURED
    return _ratios(result, "throughput, freed memory kept") + (
        "\n\nThe same where the C library keeps freed memory, as tcmalloc would, for which `vllm-prune serve` looks. "
        "Without it, as above, each large tensor comes in fresh pages from the kernel; the unpruned engine, whose "
        f"tensors are largest, loses most by that. {result['hardware']['device']}. Command: `{result['command']}`."
    )


def speed_gpu(results: Path) -> str:
    """Throughput on a GPU."""
    result = read(results / "gpu_stts_speed.json")
    if result is None:
        return NOT_MEASURED
    stock = [next(row for row in one["rows"] if row["arm"] == "stock")["seconds"] for one in result["results"]]
    return _ratios(result, "throughput on a GPU, 7B shapes") + (
        f"\n\nOne {result['hardware']['device']}, {result['dtype']}, eager, random weights in the shapes of "
        f"Qwen2.5-VL-7B ({result['model']['parameters'] / 1e9:.1f}B), medians of {result['rounds']} rounds (lowest to "
        f"highest). The processor's work is left out, as a server does it in processes of its own. The unpruned "
        f"requests took {' and '.join(f'{one:.2f} s' for one in stock)}, 4 decoded tokens included. "
        f"torch {result['hardware']['torch']}. Command: `{result['command']}`."
    )


def _ratios(result: dict[str, Any], title: str) -> str:
    lengths = result["results"]
    heads = [f"{one['frames']} frames of {one['side']} px ({one['cells']:,} visual tokens)" for one in lengths]
    lines = []
    for index, row in enumerate(lengths[0]["rows"]):
        if row["arm"] != "stock":
            measured = [one["rows"][index] for one in lengths]
            shown = [
                f"{one['throughput_ratio']:.2f}x ({one['lowest']:.2f} to {one['highest']:.2f})" for one in measured
            ]
            lines.append([row["arm"], *shown])
    return table([title, *heads], lines)


def memory(results: Path) -> str:
    """Peak memory of the encoder."""
    result = read(results / "stts_memory.json")
    if result is None:
        return NOT_MEASURED
    lines = [[row["arm"], f"{row['bytes'] / 2**20:.0f} MiB", f"{row['of_stock']:.2f}"] for row in result["rows"]]
    return table(["encoder's peak memory", "above what was resident", "of no budget"], lines) + (
        f"\n\nOne video of {result['frames']} frames ({result['patches']:,} patches) through the same model's encoder, "
        f"in processes of their own. vLLM's profile run still reserves for the unpruned case. "
        f"{result['hardware']['device']}. Command: `{result['command']}`."
    )
