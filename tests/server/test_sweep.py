"""`vllm-prune sweep` and its core on a running server."""

from __future__ import annotations

import csv
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from benchmarks.servers import Server, free_port
from benchmarks.tasks import sample
from vllm_prune.cli.main import app
from vllm_prune.sweep import SweepError, run, visual_arms
from vllm_prune.sweep.client import Client
from vllm_prune.sweep.local import serving
from vllm_prune.sweep.samples import read_jsonl

from .conftest import BUNDLED, DEMO

SAMPLES = 24


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Generated screens as picture files beside their JSONL."""
    lines = []
    for i in range(SAMPLES):
        one = sample("test", i)
        (tmp_path / "shots").mkdir(exist_ok=True)
        one.image.save(tmp_path / "shots" / f"{i}.png")
        content = [{"type": "image_url", "image_url": {"url": f"shots/{i}.png"}}, one.to_chat()[0]["content"][1]]
        lines.append({"messages": [{"role": "user", "content": content}], "max_tokens": 6, "expected": one.answer,
                      "group": one.kind, "id": f"screen-{i}"})  # fmt: skip
    path = tmp_path / "screens.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def sweep(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["sweep", *arguments], env={"COLUMNS": "200"})


def rows_of(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    found = json.loads((folder / "sweep.json").read_text())["rows"]
    return {(row["strategy"], row["group"]): row for row in found}


@pytest.mark.skipif(DEMO != BUNDLED, reason="another checkpoint does not know these screens")
def test_a_sweep_from_the_command_line(server: Server, data: Path, tmp_path: Path) -> None:
    asked = ("--url", server.url, "--strategies", "divprune", "--keep", "0.5", "--kv", "gui_kv", "--kv-keep", "0.3",
             "--out", str(tmp_path / "out"))  # fmt: skip
    found = sweep(str(data), *asked)
    assert found.exit_code == 0, found.output
    assert "0 of 7 cells were there already" in found.output.replace("\n", " ")
    rows = rows_of(tmp_path / "out")
    assert {strategy for strategy, group in rows if group == "all"} == {
        "unpruned", "divprune", "random", "uniform", "resize", "gui_kv",
    }  # fmt: skip
    assert rows["unpruned", "all"]["accuracy"] >= 0.95
    assert rows["unpruned", "all"]["kept_share"] == 1
    chosen = rows["divprune", "all"]
    assert chosen["accuracy"] > rows["uniform", "all"]["accuracy"]
    assert 0.4 < chosen["kept_share"] <= 0.5
    assert chosen["visual_kept_tokens"] < chosen["visual_input_tokens"]
    assert chosen["prompt_tokens"] < rows["unpruned", "all"]["prompt_tokens"]
    assert rows["gui_kv", "all"]["kv_evicted_rows"] > 0
    assert sum(row["n"] for (strategy, group), row in rows.items() if strategy == "divprune") == 2 * SAMPLES
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 5000
    with (tmp_path / "out" / "sweep.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(json.loads((tmp_path / "out" / "sweep.json").read_text())["rows"])

    # Again: nothing is asked, and the same comes out.
    before = server.metric("vllm:request_success_total")
    again = sweep(str(data), *asked)
    assert "7 of 7 cells were there already" in again.output.replace("\n", " ")
    assert server.metric("vllm:request_success_total") == before
    assert rows_of(tmp_path / "out") == rows

    # One cell is gone and one more is asked for: only these two are asked.
    next((tmp_path / "out" / "cells").glob("*.json")).unlink()
    more = sweep(str(data), *asked, "--kv-keep", "0.3,0.2", "--limit", str(SAMPLES))
    assert "6 of 9 cells were there already" in more.output.replace("\n", " ")
    assert server.metric("vllm:request_success_total") == before + 3 * SAMPLES


def test_an_arm_that_the_server_refuses_is_a_row_of_its_own(server: Server, data: Path, tmp_path: Path) -> None:
    found = sweep(str(data), "--url", server.url, "--strategies", "evs", "--keep", "0.5", "--limit", "2", "--out",
                  str(tmp_path / "out"))  # fmt: skip
    assert found.exit_code == 0, found.output
    row = rows_of(tmp_path / "out")["evs", "all"]
    assert row["n"] == 0
    assert "evs" in row["refused"]


@pytest.mark.skipif(DEMO != BUNDLED, reason="another checkpoint does not know these screens")
def test_a_cell_gives_the_same_answers_twice(server: Server, model: str, data: Path) -> None:
    samples, client = read_jsonl(data), Client(server.url)
    first, second = (run(client, model, samples, visual_arms(["divprune"], [0.25])) for _ in range(2))
    assert [[answer.right for answer in cell.answers] for cell in first] == [
        [answer.right for answer in cell.answers] for cell in second
    ]
    assert [answer.id for answer in first[1].answers] == [f"screen-{i}" for i in range(SAMPLES)]


def test_what_cannot_be_swept_is_said(server: Server, data: Path, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "out"))
    for arguments, message in (
        (("--url", server.url, "--strategies", "best"), "no strategy best"),
        (("--url", server.url, "--keep", "1.5"), "at most 1, not 1.5"),
        (("--url", f"http://127.0.0.1:{free_port()}"), "no server at"),
        (("--url", server.url, "--format", "coco"), "unknown format 'coco'"),
    ):
        found = sweep(str(data), *arguments, *out)
        assert found.exit_code == 2
        assert message in found.output
    assert sweep(str(data), "--keep", "half").exit_code == 2


def test_a_server_that_fails_ends_the_sweep(model: str, data: Path) -> None:
    # A port that takes connections and hangs up.
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(SweepError, match="sample screen-0 failed 3 times"):
            run(Client(url, concurrency=1), model, read_jsonl(data, 1), [])


@pytest.mark.engine
def test_a_model_that_does_not_start_shows_its_log() -> None:
    with pytest.raises(SweepError, match="is not a directory"), serving("./no/such/model"):
        pass
