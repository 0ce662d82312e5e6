"""kvpress under transformers beside ours, on the same KV task: `python -m benchmarks.peers`.

Held-out samples of the demo model's image tasks, one request at a time, the same share of the prompt's rows kept by the
same methods: first kvpress, then ours, as each would take all cores. kvpress needs an older transformers than vLLM, so
it gets an environment of its own under `build/`, which borrows PyTorch from this one; pip makes it when it is missing.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import httpx
import torch
import typer
from rich.console import Console
from rich.table import Table

from vllm_prune.sweep.graders import grade
from vllm_prune.sweep.samples import Sample

from ..machine import RESULTS, command_line, hardware
from ..quality import AFTER_EVICTION, CHECKPOINT, FILMS, answered, held_out
from ..servers import EAGER, Server
from ..steps import Steps

ENVIRONMENT = RESULTS.parents[1] / "build" / "kvpress"
CHILD = Path(__file__).with_name("kvpress_child.py")
METHODS = ("none", "snapkv", "keydiff", "knorm")
TOKENS = 7
WINDOW = 8
OURS, THEIRS = "vllm-prune", "kvpress"


def interpreter(folder: Path = ENVIRONMENT) -> Path:
    """The interpreter that has kvpress; the environment is made where it is missing.

    Raises:
        RuntimeError: pip cannot install it.
    """
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        venv.create(folder, with_pip=True, clear=True)
        spec = find_spec("torch")
        assert spec is not None
        assert spec.origin is not None
        base = Path(spec.origin).parents[1]
        (site,) = folder.glob("lib/python3*/site-packages")
        # Behind its own packages, with the hooks that the other environment has for its torchvision.
        (site / "base.pth").write_text(f"import site; site.addsitedir({str(base)!r})\n")
        done = subprocess.run([python, "-m", "pip", "install", "-q", "kvpress"], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"pip could not install kvpress into {folder}: {done.stderr[-2000:]}")
        (folder / "done").touch()
    return python


def theirs(samples: Sequence[Sample], keep: float) -> dict[str, Any]:
    """Answers and seconds of kvpress, by method."""
    with tempfile.TemporaryDirectory(prefix="vllm-prune-peers-") as folder:
        job, result = Path(folder) / "job.json", Path(folder) / "result.json"
        messages = [one.request["messages"] for one in samples]
        job.write_text(json.dumps({
            "checkpoint": str(CHECKPOINT), "keep": keep, "presses": METHODS, "requests": messages, "tokens": TOKENS,
            "threads": torch.get_num_threads(),
        }))  # fmt: skip
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": ""}
        subprocess.run([interpreter(), CHILD, job, result], check=True, env=environment)
        found: dict[str, Any] = json.loads(result.read_text())
        return found


def ours(samples: Sequence[Sample], keep: float) -> dict[str, list[tuple[str, float]]]:
    """Answers and seconds of a server of ours, by method; methods take turns."""
    log = Path(tempfile.mkdtemp(prefix="vllm-prune-peers-")) / "server.log"
    rows: dict[str, list[tuple[str, float]]] = {name: [] for name in METHODS}
    arguments = [*EAGER, "--max-num-seqs", "1", "--dtype", "float32", "--no-enable-prefix-caching"]
    with Server(CHECKPOINT, "prune", arguments, log=log) as server, Steps() as steps:
        model = server.model_name
        steps.begin(len(samples) * len(METHODS))
        with httpx.Client(timeout=300, trust_env=False) as client:
            for one in samples:
                for name in METHODS:
                    steps.step(f"{OURS}, {name}")
                    body = {**one.request, "model": model, "temperature": 0, "pruning": budget(name, keep)}
                    started = time.perf_counter()
                    reply = client.post(f"{server.url}/v1/chat/completions", json=body).raise_for_status().json()
                    seconds = time.perf_counter() - started
                    rows[name].append((reply["choices"][0]["message"]["content"].strip(), seconds))
    return rows


def budget(method: str, keep: float) -> dict[str, Any]:
    """The request field of a method; the window is kvpress's, too."""
    kv = None if method == "none" else {"strategy": method, "keep": keep, "window": WINDOW}
    return {"visual": None, "kv": kv}


def summary(side: str, rows: dict[str, list[tuple[str, float]]], samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """One row for each method: right answers, and median milliseconds of a request."""
    return [
        {
            "side": side, "method": name, "n": len(answers),
            "right": sum(grade(text, one.expectation) for one, (text, _) in zip(samples, answers, strict=True)),
            "ms": 1000 * statistics.median(seconds for _, seconds in answers),
        }
        for name, answers in rows.items()
    ]  # fmt: skip


def main(
    n: Annotated[int, typer.Option(help="Held-out samples of each image task, of large ones a third.")] = 36,
    keep: Annotated[float, typer.Option(help="Share of the prompt's rows that is kept.")] = 0.2,
    save: Annotated[bool, typer.Option(help="Write benchmarks/results/peers.json.")] = False,
) -> None:
    """Measure and print."""
    samples = held_out([task for task in answered() if task not in FILMS], n, AFTER_EVICTION)
    print("kvpress under transformers", file=sys.stderr)
    found = theirs(samples, keep)
    rows = [*summary(THEIRS, found["rows"], samples), *summary(OURS, ours(samples, keep), samples)]
    table = Table("", "method", "right answers", "ms per request")
    for row in rows:
        table.add_row(row["side"], row["method"], f"{row['right']} of {row['n']}", f"{row['ms']:.0f}")
    Console().print(table)
    if save:
        about = {"command": command_line("benchmarks.peers"), "hardware": hardware(), "keep": keep, "window": WINDOW,
                 "samples": n, "peer": found["versions"]}  # fmt: skip
        (RESULTS / "peers.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
