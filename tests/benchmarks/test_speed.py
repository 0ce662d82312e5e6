"""The speed harness on made-up rounds: ratios of one round, arms that fail, media, and the committed schema."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from benchmarks.machine import RESULTS
from benchmarks.report import speed as report
from benchmarks.shapes import SEVEN_B
from benchmarks.speed import __main__ as command
from benchmarks.speed import bound
from benchmarks.speed import rounds as rounds_module
from benchmarks.speed.arms import (
    EVS,
    OURS,
    STOCK,
    Arm,
    defaults,
    kv,
    matrix,
    off,
    peer,
    pruning_arguments,
    stock,
    visual,
)  # fmt: skip
from benchmarks.speed.client import Answer
from benchmarks.speed.fleet import Fleet
from benchmarks.speed.forms import QUICK, Form, few_arms, few_loads
from benchmarks.speed.meters import Spent
from benchmarks.speed.micro import Speeds
from benchmarks.speed.plot import draw
from benchmarks.speed.results import ResultFile, few, joined, show
from benchmarks.speed.rounds import Clock, Load, Measured, Round, interleaved, measure
from benchmarks.speed.summary import summarise
from benchmarks.speed.workloads import CPU, GPU, TINY, Workload, workloads
from vllm_prune.bench.watch import Peaks
from vllm_prune.budget.canonical import canonical
from vllm_prune.budget.fields import VisualField, parse_pruning

LOAD = Load(workloads(TINY)["screenshot"], 2, 2, 28, quiet=0.0)


def one_round(seconds: float, ttft: float = 0.5, gaps: int = 2) -> Round:
    usage = {"prompt_tokens": 40, "pruning": {"visual": {"kept_tokens": 12}, "kv": None}}
    answers = [Answer(seconds, [ttft + 0.1 * i for i in range(gaps + 1)], usage) for _ in range(2)]
    return Round(seconds, answers, Peaks(0.5, 2, 0, 3), Spent(0.2, 0.01, 0.0))


def measured(**seconds: list[float]) -> Measured:
    rounds = {name: [one_round(one) for one in values] for name, values in seconds.items()}
    return Measured(LOAD, 5, {name: values[0] for name, values in rounds.items()}, rounds)


def test_ratios_are_of_one_round() -> None:
    cell = summarise(measured(stock=[2.0, 8.0, 4.0], off=[1.0, 2.0, 4.0]))
    rows = {row["arm"]: row for row in cell["rows"]}
    assert rows["off"]["throughput_ratio"] == 2.0
    assert (rows["off"]["throughput_lowest"], rows["off"]["throughput_highest"]) == (1.0, 4.0)
    assert rows["stock"]["throughput_ratio"] == rows["stock"]["ttft_ratio"] == 1.0
    assert rows["off"]["requests_per_second"] == 1.0
    assert rows["off"]["itl_p50_ms"] == pytest.approx(100)
    assert rows["off"]["scoring_share"] == pytest.approx(0.01 / 2)
    assert (rows["off"]["kept_visual_tokens"], rows["off"]["evicted_rows"]) == (12.0, None)
    assert (cell["rounds"], cell["rounds_wanted"]) == (3, 5)
    json.dumps(cell, allow_nan=False)


def test_goodput_counts_first_tokens_in_time() -> None:
    quick, slow = one_round(2.0, ttft=0.1), one_round(2.0, ttft=0.9)
    found = Measured(LOAD, 1, {}, {"stock": [quick], "slow": [slow]})
    assert [row["goodput"] for row in summarise(found)["rows"]] == [1.0, 0.0]
    assert [row["goodput"] for row in summarise(found, target=1.0)["rows"]] == [1.0, 1.0]


def test_answers_of_one_token_have_no_time_between_tokens() -> None:
    cell = summarise(Measured(LOAD, 1, {}, {"stock": [one_round(1.0, gaps=0)]}))
    assert cell["rows"][0]["itl_p50_ms"] is None


def test_without_a_whole_round_there_are_no_rows() -> None:
    assert summarise(Measured(LOAD, 5, {"stock": one_round(1.0)}))["rows"] == []


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_orders_of_rounds_are_balanced(count: int) -> None:
    arms = [Arm(name, STOCK) for name in "abcdef"[:count]]
    rounds = 2 * count if count % 2 else count
    orders = ["".join(arm.name for arm in interleaved(arms, number)) for number in range(rounds)]
    for place in range(count):
        assert set(Counter(order[place] for order in orders).values()) == {rounds // count}
    pairs = Counter(order[place : place + 2] for order in orders for place in range(count - 1))
    assert len(pairs) == count * (count - 1)
    assert len(set(pairs.values())) <= 1


def test_an_arm_that_fails_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def fake(fleet: Any, arm: Arm, chats: Any, load: Load) -> Round:
        asked.append(arm.name)
        if arm.name == "bad" and asked.count("bad") == 2:
            raise RuntimeError("answered 500")
        return one_round(1.0)

    monkeypatch.setattr(rounds_module, "one_round", fake)
    arms = [stock(), Arm("bad", OURS), Arm("good", OURS)]
    found = measure(cast(Fleet, None), arms, LOAD, 3, Clock())
    assert {name: len(values) for name, values in found.rounds.items()} == {"stock": 3, "good": 3}
    assert "answered 500" in found.errors["bad"]
    assert asked.count("bad") == 2


def test_rounds_end_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fake(fleet: Any, arm: Arm, chats: Any, load: Load) -> Round:
        return one_round(1.0)

    monkeypatch.setattr(rounds_module, "one_round", fake)
    for least in (0, 1, 3):
        found = measure(cast(Fleet, None), [stock()], LOAD, 50, Clock(-1.0), least=least)
        assert len(found.first) == 1
        assert len(found.rounds.get("stock", ())) == least


def test_prepared_rounds_send_the_same_media_and_others_never_do(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[list[Any]] = []

    async def fake(fleet: Any, arm: Arm, chats: Any, load: Load) -> Round:
        sent.append(list(chats))
        return one_round(1.0)

    monkeypatch.setattr(rounds_module, "one_round", fake)
    for prepared in (True, False):
        sent.clear()
        load = Load(LOAD.workload, 2, 2, 28, prepared=prepared, quiet=0.0)
        measure(cast(Fleet, None), [stock()], load, 2, Clock())
        assert (sent[0] == sent[1] == sent[2]) == prepared
        assert (sent[1] == sent[2]) == prepared


@pytest.mark.slow
def test_no_server_is_sent_a_request_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, list[str]] = {}

    async def fake(fleet: Any, arm: Arm, chats: Any, load: Load) -> Round:
        sent.setdefault(arm.server, []).extend(json.dumps(chat) for chat in chats)
        return one_round(1.0)

    monkeypatch.setattr(rounds_module, "one_round", fake)
    everything = workloads(replace(TINY, words=30))
    loads = [Load(everything[name], level, level, 28, quiet=0.0) for name in ("text", "mix") for level in (1, 4)]
    arms = [stock(), off(), kv(0.5), kv(0.25)]
    for i, load in enumerate(loads):
        measure(cast(Fleet, None), arms, load, 4, Clock(), seed=command.SEEDS * i)
    for texts in sent.values():
        assert len(set(texts)) == len(texts)
    # Which set an arm gets turns from round to round, so that all arms send what another one has sent elsewhere.
    assert set(sent[STOCK]) < set(sent[OURS])


def test_arms_go_where_they_mean_something() -> None:
    everything = workloads(CPU)
    evs, cut = peer(EVS, 0.25), visual(0.5, "tower")
    assert [name for name, one in everything.items() if evs.takes(one)] == ["video", "mix"]
    assert [name for name, one in everything.items() if not cut.takes(one)] == ["text"]
    arms = list(matrix([STOCK, EVS, OURS], command.KEEPS, command.KV_KEEPS))
    assert len({arm.name for arm in arms}) == len(arms) == 1 + 1 + 1 + 12 + 3
    for arm in arms:
        if arm.pruning is not None:
            parse_pruning(arm.pruning)
    assert arms[0] == stock()


def test_only_stocks_own_pruning_changes_a_servers_arguments() -> None:
    assert pruning_arguments(STOCK, 0.25, cuda=True) == pruning_arguments(OURS, 0.25, cuda=False) == []
    assert pruning_arguments(EVS, 0.25, cuda=True)[1] == "0.75"
    # vLLM's CPU runner needs to be told, by a worker that exists.
    assert pruning_arguments(EVS, 0.25, cuda=False)[-2] == "--worker-cls"


@pytest.mark.parametrize("name", workloads(TINY))
def test_requests_have_the_size_that_they_claim(name: str) -> None:
    workload = workloads(TINY)[name]
    for chat in islice(workload.chats(28, seed=0), 8):
        tokens = 0
        for part in chat[0]["content"]:
            if part["type"] == "image_url":
                width, height = Image.open(io.BytesIO(_data(part["image_url"]["url"]))).size
                tokens += (width // 28) * (height // 28)
            elif part["type"] == "video_url":
                tokens += _video_tokens(_data(part["video_url"]["url"]))
        assert tokens == workload.visual_tokens or (workload.parts and tokens <= workload.visual_tokens)


def _data(url: str) -> bytes:
    return base64.b64decode(url.partition(",")[2])


def _video_tokens(data: bytes) -> int:
    path = f"/proc/self/fd/{_memory_file(data)}"
    video = cv2.VideoCapture(path)
    frames = [frame for more, frame in iter(video.read, (False, None)) if more]
    assert all(isinstance(frame, np.ndarray) for frame in frames)
    return len(frames) // 2 * (frames[0].shape[0] // 28) * (frames[0].shape[1] // 28)


def _memory_file(data: bytes) -> int:
    import os

    number = os.memfd_create("video")
    os.write(number, data)
    return number


def test_shared_media_come_again_with_other_text() -> None:
    one, other = islice(Workload("a", 1, screens=((2, 3),), words=6, shared=True).chats(28, seed=0), 2)
    assert one[0]["content"][1:] == other[0]["content"][1:]
    assert one[0]["content"][0] != other[0]["content"][0]


def test_a_request_fits_in_the_rows_that_it_claims() -> None:
    for sizes in (CPU, GPU):
        for workload in workloads(sizes).values():
            assert workload.rows > workload.visual_tokens + workload.tokens


def test_each_whole_round_is_handed_on_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    answered: list[str] = []

    async def fake(fleet: Any, arm: Arm, chats: Any, load: Load) -> Round:
        answered.append(arm.name)
        # Two warm up, two rounds are whole, and the next one is cut short.
        if len(answered) == 8:
            raise KeyboardInterrupt
        return one_round(1.0)

    monkeypatch.setattr(rounds_module, "one_round", fake)
    so_far: list[Measured] = []
    with pytest.raises(KeyboardInterrupt):
        measure(cast(Fleet, None), [stock(), Arm("off", OURS)], LOAD, 5, Clock(), keep=so_far.append)
    counts = [{name: len(rounds) for name, rounds in one.rounds.items()} for one in so_far]
    assert counts == [{"stock": 1, "off": 1}, {"stock": 2, "off": 2}]
    cell = summarise(so_far[-1])
    assert (cell["rounds"], cell["rounds_wanted"], len(cell["rows"])) == (2, 5, 2)


def test_what_fails_between_two_rounds_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fake(fleet: Any, arm: Arm, chats: Any, load: Load) -> Round:
        if arm.name == "bad" and so_far:
            raise RuntimeError("answered 500")
        return one_round(1.0)

    monkeypatch.setattr(rounds_module, "one_round", fake)
    so_far: list[Measured] = []
    measure(cast(Fleet, None), [stock(), Arm("bad", OURS)], LOAD, 2, Clock(), keep=so_far.append)
    assert [list(one.rounds) for one in so_far] == [["stock", "bad"], ["stock"]]
    assert len(summarise(so_far[-1])["rows"]) == 1


class FakeFleet(dict[str, Any]):
    """Servers that are there at once, and a note of their end."""

    ended = False

    def __init__(self, *args: Any) -> None:
        super().__init__()

    def start(self, plans: Any, at_once: int) -> dict[str, str]:
        return {}

    def __enter__(self) -> FakeFleet:
        return self

    def __exit__(self, *args: object) -> None:
        FakeFleet.ended = True


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, fleet: type[FakeFleet]) -> None:
    """The command without a model, a machine's speed or servers."""
    monkeypatch.setattr(command, "Fleet", fleet)
    monkeypatch.setattr(command, "served", lambda shape: (folder, [], ""))
    monkeypatch.setattr(command, "parameters", lambda _: 1_000_000)
    monkeypatch.setattr(command, "hardware", dict)
    monkeypatch.setattr(command.Shape, "of", lambda _: SEVEN_B)
    monkeypatch.setattr(command.micro, "measure", lambda: Speeds(1e11, 1e10, "cpu", "float32"))


@pytest.mark.parametrize("after", [None, 2, 10])
def test_a_run_that_is_ended_leaves_its_results(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], after: int | None
) -> None:
    answered, FakeFleet.ended = 0, False

    async def fake(fleet: Any, arm: Arm, chats: Any, load: Load) -> Round:
        nonlocal answered
        answered += 1
        if answered == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return one_round(1.0)

    monkeypatch.setattr(rounds_module, "one_round", fake)
    stand_in(monkeypatch, tmp_path, FakeFleet)
    monkeypatch.setattr(command, "ResultFile", partial(ResultFile, folder=tmp_path))
    # Screens of this size take no time to draw.
    words = ["--quick", "--rows", "2", "--cols", "2"]
    outcome = CliRunner().invoke(app(), words)
    assert outcome.exit_code == (0 if after is None else 130), outcome.output
    assert FakeFleet.ended
    path = tmp_path / "speed.json"
    assert path.exists() == (after != 2)
    if after == 2:
        return
    written = json.loads(path.read_text())
    # Four arms warm up, and the first load has one whole round before the tenth measurement ends the run.
    assert written["finished"] == (after is None)
    assert [cell["rounds"] for cell in written["loads"]] == ([5, 5] if after is None else [1])


class UnstartedFleet(FakeFleet):
    """A server of it does not start."""

    def start(self, plans: Any, at_once: int) -> dict[str, str]:
        return {OURS: "ours did not answer in 300 s"}


def test_a_server_that_does_not_start_is_named_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, tmp_path, UnstartedFleet)
    outcome = CliRunner().invoke(app(), ["--quick"])
    assert outcome.exit_code == 1
    said = outcome.output + capfd.readouterr().err
    assert "ours did not answer in 300 s" in said
    assert "logs in" in said
    assert "Traceback" not in said


def app() -> typer.Typer:
    one = typer.Typer()
    one.command()(command.main)
    return one


def test_the_quick_form_says_what_it_is() -> None:
    outcome = CliRunner().invoke(app(), ["--quick", "--save"])
    assert outcome.exit_code == 2
    assert [arm.name for arm in few_arms("divprune", QUICK.keeps)] == [
        "stock", "keep 1 (off)", "keep 0.25", "keep 0.25, cut inside the tower",
    ]  # fmt: skip
    alone, loaded = few_loads(CPU, 4, QUICK)
    assert (alone.requests, loaded.requests, alone.workload.tokens) == (1, QUICK.requests, 1)
    assert alone.workload.visual_tokens == QUICK.screen[0] * QUICK.screen[1] < Form.screen[0] * Form.screen[1]


def test_arms_are_chosen_by_a_part_of_their_name() -> None:
    everything = list(matrix([STOCK, EVS, OURS], command.KEEPS, command.KV_KEEPS))
    chosen = [one.name for one in command._chosen(everything, ["evs", "25% behind"])]
    assert chosen == ["stock", "evs 25%", "keep 25% behind the tower"]
    assert command._chosen(everything, None) == everything
    with pytest.raises(typer.BadParameter, match="keep 75% in the tower"):
        command._chosen(everything, ["evs", "26%"])


def test_fewer_rounds_than_wanted_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    for rounds, words in ((3, "only 3 of 5 rounds"), (5, "medians of 5 rounds")):
        show(summarise(measured(stock=[1.0] * rounds)), "tiny")
        assert words in " ".join(capsys.readouterr().out.split())


def test_the_few_arms_give_the_schema_of_the_committed_result() -> None:
    arms = few_arms("divprune")
    committed = json.loads((RESULTS / "speed.json").read_text())
    assert [arm.name for arm in arms] == [row["arm"] for row in committed["rows"]]
    cell = summarise(measured(**{arm.name: [1.0] for arm in arms}))
    (row, *_) = few([cell, cell])["rows"]
    bounds = {"ttft_bound", "throughput_bound"}
    assert row.keys() - bounds == committed["rows"][0].keys() - bounds


def test_the_matrix_has_a_table_and_a_panel_for_each_load(tmp_path: Path) -> None:
    arms = [stock(), peer(EVS, 0.25), visual(0.25, "tower")]
    cells = [summarise(measured(**{arm.name: [2.0 / (i + 1)] * 2 for i, arm in enumerate(arms)})) for _ in range(2)]
    speeds = Speeds(1e11, 1e10, "cpu", "float32")
    bound.add_to(cells[0], SEVEN_B, LOAD.workload, arms, speeds)
    cells.append(summarise(Measured(LOAD, 5)))
    about = {"parameters": 1e8, "hardware": {"device": "2 cores", "vllm": "0.32.0"}}
    run = {"command": "a command", "speeds": asdict(speeds)}
    written = about | {"loads": [run | cell for cell in cells]}
    (tmp_path / "speed_matrix.json").write_text(json.dumps(written, allow_nan=False))
    text = report.matrix(tmp_path)
    row = next(line for line in text.splitlines() if line.startswith("| keep 25% in the tower"))
    most = cells[0]["rows"][2]["ratio_bound"]
    assert f"| 3.00x (3.00 to 3.00) | {3 / most:.0%} of {most:.2f}x |" in row
    assert text.count("| arm |") == 2
    assert "No round was whole." in text
    assert text.count("`a command`") == 1
    draw(cells, tmp_path / "matrix.png")
    assert Image.open(tmp_path / "matrix.png").width > 600


def test_a_saved_matrix_keeps_the_loads_of_earlier_runs() -> None:
    cell = summarise(measured(stock=[1.0]))
    run = {"hardware": {"vllm": "0.32.0"}, "parameters": 1, "speeds": {"flops": 1}}
    first = run | {"command": "first", "loads": [cell | {"concurrency": n} for n in (1, 8)]}
    second = run | {"command": "second", "loads": [cell | {"concurrency": n, "speeds": {"flops": 2}} for n in (8, 32)]}
    both = joined(joined(first, first), second)
    assert [(one["concurrency"], one["command"]) for one in both["loads"]] == [
        (1, "first"), (8, "second"), (32, "second"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="hardware of the saved result"):
        joined(first, second | {"hardware": {"vllm": "0.33.0"}})


def test_pruned_arms_take_the_default_strategies_behind_the_tower() -> None:
    for place, image, video in (("behind", "vidcom2", "divprune"), ("tower", "divprune", "divprune")):
        field = parse_pruning(visual(0.25, place).pruning).visual
        assert isinstance(field, VisualField)
        spec = canonical(field)
        assert spec.image is not None
        assert spec.video is not None
        assert (spec.image.strategy, spec.video.strategy) == (image, video)
        inside = {json.loads(part.options).get("where") for part in (spec.image, spec.video)}
        assert inside <= ({"tower"} if place == "tower" else {"embed", None})
    assert defaults() == "vidcom2 behind the tower, divprune inside it"


def test_a_table_of_the_few_has_the_bound_where_it_is_known() -> None:
    row = {"arm": "keep 0.25", "prompt_tokens": 405, "ttft_ratio": 2.0, "throughput_ratio": 3.0}
    assert report._few_row(row)[2:] == ["2.00x", "3.00x"]
    assert report._few_row(row | {"ttft_bound": 4.0, "throughput_bound": 4.0})[2:] == [
        "2.00x (50% of 4.00x)", "3.00x (75% of 4.00x)",
    ]  # fmt: skip


def test_the_bound_knows_after_which_block_an_arm_cuts() -> None:
    """The few arms cut a small tower early."""
    cut = few_arms("divprune", (0.25,))[-1]
    assert cut.place == "tower"
    assert bound.request_of(SEVEN_B, LOAD.workload, cut).cut_after == 1
    assert bound.request_of(SEVEN_B, LOAD.workload, visual(0.25, "tower")).cut_after == bound.CUT_AFTER
