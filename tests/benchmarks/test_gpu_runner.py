"""The steps of `benchmarks/gpu.sh` go on after each other whatever becomes of one; no engine runs here."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import shapes
from benchmarks.gpu import __main__ as main
from benchmarks.gpu import backends, cache, exact, plugin_site, runner, tests_step, visual
from benchmarks.gpu.runner import Clock, Context, Skip, Step, make_context, run_all
from benchmarks.gpu.scale import GRAPHS, RUNNER, Scale, full, tiny
from benchmarks.shapes import EIGHT_B, GIB, SEVEN_B
from benchmarks.speed import fleet

from ..vllm_names import make_arg_parser

pytestmark = pytest.mark.slow

H100, H200 = 79 * GIB, 140 * GIB


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return make_context(tiny(cuda=False), tmp_path / "out", {"hardware": {}})


def read(context: Context, name: str) -> dict[str, Any]:
    return dict(json.loads((context.out / f"{name}.json").read_text()))


def states(summary: list[dict[str, Any]]) -> dict[str, str]:
    return {line["step"]: line["status"] for line in summary}


def good(context: Context) -> None:
    context.result["figure"] = 1.0


def bad(context: Context) -> None:
    good(context)
    raise ValueError("went wrong")


def test_a_failing_step_is_reported_with_its_traceback_and_the_next_ones_run(context: Context) -> None:
    summary = run_all([Step("a", 9, 0, good), Step("b", 9, 0, bad), Step("c", 9, 0, good)], context, Clock(60))
    assert states(summary) == {"a": "ok", "b": "failed", "c": "ok"}
    assert "ValueError: went wrong" in summary[1]["why"]
    assert "in bad" in read(context, "b")["why"]
    assert (read(context, "b")["figure"], read(context, "c")["figure"]) == (1.0, 1.0)
    assert read(context, "summary")["steps"] == summary


def test_a_failing_part_leaves_the_others(context: Context) -> None:
    def parts(context: Context) -> None:
        with context.part("first"):
            raise KeyError("gone")
        with context.part("second"):
            raise Skip("not here")
        with context.part("third"):
            context.result["third"] = "done"

    (line,) = run_all([Step("a", 9, 0, parts)], context, Clock(60))
    found = read(context, "a")
    assert (line["status"], line["why"]) == ("failed", "failed parts: first")
    assert "KeyError: 'gone'" in found["problems"]["first"]
    assert found["skipped"] == {"second": "not here"}
    assert found["third"] == "done"


def test_a_figure_that_is_no_number_fails_its_step(context: Context) -> None:
    def nan(context: Context) -> None:
        context.result["before"] = 1
        context.save()
        context.result["figure"] = float("nan")

    summary = run_all([Step("a", 9, 0, nan), Step("b", 9, 0, good)], context, Clock(60))
    assert states(summary) == {"a": "failed", "b": "ok"}
    assert read(context, "a")["before"] == 1


def test_steps_that_no_longer_fit_are_named(context: Context) -> None:
    summary = run_all([Step("a", 9, 0, good), Step("b", 9, 50, good), Step("c", 9, 5, good)], context, Clock(20))
    assert states(summary) == {"a": "ok", "b": "skipped", "c": "ok"}
    assert "needs at least 50 s" in summary[1]["why"]
    assert not (context.out / "b.json").exists()


def test_a_step_that_hangs_is_interrupted(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "GRACE", 0.2)
    monkeypatch.setattr(runner, "AGAIN", 0.1)

    def hangs(context: Context) -> None:
        good(context)
        try:
            time.sleep(30)
        except Exception:
            raise AssertionError("a step took the interruption for a failure of its own") from None

    before, started = signal.getsignal(signal.SIGALRM), time.monotonic()
    summary = run_all([Step("a", 0.1, 0, hangs), Step("b", 9, 0, good)], context, Clock(60))
    assert states(summary) == {"a": "timed out", "b": "ok"}
    assert read(context, "a")["figure"] == 1.0
    assert time.monotonic() - started < 10
    assert signal.getsignal(signal.SIGALRM) is before


@pytest.mark.parametrize("scale", [full(H100), full(H200), tiny(cuda=False)], ids=["h100", "h200", "tiny"])
def test_there_are_no_more_result_files_than_come_back(scale: Scale) -> None:
    names = [step.name for step in main.steps(scale)]
    assert len({*names, "summary"}) == len(names) + 1 <= 8


def test_servers_fit_beside_each_other() -> None:
    seven, cache = full(H100).fitting(SEVEN_B)
    assert seven == ["stock", "ours", "evs"]
    # A full round of the largest load is in the cache, or the comparison would be one of pools.
    assert cache >= 32 * max(full(H100).workloads[name].rows for name in ("video", "screenshot")) * SEVEN_B.row_bytes
    assert 3 * (cache + SEVEN_B.weight_bytes + 3 * GIB) < H100
    eight, cache = full(H100).fitting(EIGHT_B)
    assert eight == ["stock", "ours", "vidcom2"]
    assert 3 * (cache + EIGHT_B.weight_bytes + 3 * GIB) < H100
    assert full(H200).fitting(EIGHT_B)[0] == ["stock", "ours", "vidcom2", "evs"]


def test_servers_of_a_gpu_run_as_a_user_would_start_them() -> None:
    scale = full(H100)
    _, cache = scale.fitting(SEVEN_B)
    plans = {name: scale.plan(name, name, SEVEN_B, cache, "v2") for name in ("stock", "ours", "evs")}
    assert [plans[name].kind for name in plans] == ["stock", "prune", "stock"]
    assert set(plans["evs"].arguments) - set(plans["stock"].arguments) == {
        "--video-pruning-rate", "0.75", "--video-pruning-method", "evs",
    }  # fmt: skip
    assert plans["ours"].arguments == plans["stock"].arguments
    assert "--enforce-eager" not in plans["ours"].arguments
    assert plans["ours"].fallback == ("--enforce-eager",)
    assert [scale.plan("a", "ours", SEVEN_B, cache, runner).environment[RUNNER] for runner in ("v1", "v2")] == [
        "0",
        "1",
    ]


@pytest.mark.slow
def test_arguments_of_all_servers_are_vllms(context: Context) -> None:
    """What only a GPU runs is parsed here by vLLM's own parser."""
    from vllm.config import CompilationConfig
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    gpu = Context(full(H100), context.out, context.work)
    plans = [*exact.plans(gpu), *backends.plans(gpu)]
    for shape in gpu.scale.shapes:
        names, cache = gpu.scale.fitting(shape)
        plans += [gpu.scale.plan(name, name, shape, cache, runner) for name in names for runner in gpu.scale.runners]
    assert len({plan.name for plan in plans}) >= 4 + 3 + 4
    for plan in plans:
        parsed = parser.parse_args([*plan.arguments, *plan.fallback])
        assert parsed.kv_cache_memory_bytes > 0
        assert parsed.gpu_memory_utilization == 0.02
    assert CompilationConfig(**GRAPHS).cudagraph_mode.name == "FULL_DECODE_ONLY"
    with pytest.raises(SystemExit):
        parser.parse_args(["--no-such-flag", "1"])


def test_files_of_the_gpu_step_have_the_marker() -> None:
    files = tests_step.files()
    assert "tests/kv/test_kernels.py" in files
    assert "tests/benchmarks/test_tasks.py" not in files
    assert tests_step.command(Path("report.xml"))[1:6] == ["-m", "pytest", "-v", "-m", "gpu"]


def test_tests_that_take_too_long_say_how_far_they_came_and_leave_no_process(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An engine in a process of its own, which outlives its parent.
    child = (
        "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print('engine', p.pid, flush=True); p.wait()"
    )
    monkeypatch.setattr(tests_step, "command", lambda report: [sys.executable, "-c", child])
    (line,) = run_all([Step("kernels", 3, 0, tests_step.run)], context, Clock(60))
    found = read(context, "kernels")
    assert line["status"] == "failed"
    assert "TimeoutExpired" in found["problems"]["pytest"]
    word, pid = found["output"].split()
    assert word == "engine"
    state, deadline = Path(f"/proc/{pid}/stat"), time.monotonic() + 5
    # What is killed ends once it has its next turn.
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("takes", "error", "tries"), [(30, RuntimeError, [100.0, 70.0]), (100, TimeoutError, [100.0])])
def test_a_second_try_is_made_in_what_the_first_has_left(
    takes: float, error: type[Exception], tries: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, limits = [0.0], []

    class Failing:
        process = None

        def __init__(self, *_: Any, start_seconds: float, **__: Any) -> None:
            limits.append(start_seconds)

        def __enter__(self) -> None:
            now[0] += takes
            raise error("not started")

    monkeypatch.setattr(fleet, "Server", Failing)
    monkeypatch.setattr(fleet, "time", SimpleNamespace(monotonic=lambda: now[0]))
    servers = fleet.Fleet(tmp_path, tmp_path, start_seconds=100)
    assert servers.start([fleet.Plan("ours", "prune", fallback=("--enforce-eager",))]) == {"ours": "not started"}
    assert limits == tries
    assert "ours" not in servers


def test_the_plugin_is_found_without_being_installed(tmp_path: Path) -> None:
    folder = plugin_site.lay_out(tmp_path / "site")
    code = """
from importlib.metadata import distribution, entry_points
import vllm_prune_server, vllm_prune
print(vllm_prune.__file__)
print(sorted(entry.group for entry in distribution("vllm-prune").entry_points))
print([entry.load().__name__ for entry in entry_points(group="vllm.general_plugins") if entry.name == "vllm_prune"])
"""
    # -S: no site-packages, so that only the folder can answer.
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(folder)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    where, groups, loaded = done.stdout.splitlines()
    assert where.startswith(str(folder))
    for group in ("vllm.general_plugins", "vllm.endpoint_plugins", "vllm.stat_logger_plugins", "vllm_prune.server"):
        assert group in groups
    assert loaded == "['register']"


@pytest.mark.parametrize("scale", [full(H100), tiny(cuda=False)], ids=["full", "tiny"])
def test_every_request_of_every_step_fits_in_the_servers_context(scale: Scale) -> None:
    for shape in scale.shapes:
        arguments = scale.plan("ours", "ours", shape, GIB, "v1").arguments
        room = int(arguments[arguments.index("--max-model-len") + 1])
        used = [scale.workloads[name] for name in visual.WORKLOADS]
        used += [scale.turns(answer) for answer in (scale.turn_answer, scale.short_answer, scale.sizes.long_answer)]
        assert max(workload.rows for workload in used) <= room
        assert room <= shapes.POSITIONS
    # What is called tight is: not all of the requests that are sent at once have room; what is called ample has.
    if scale.cuda:
        _, cache = scale.fitting(SEVEN_B)
        rows = cache / SEVEN_B.row_bytes
        assert scale.tight * scale.turns(scale.turn_answer).visual_tokens > 1.4 * rows
        assert scale.ample * scale.turns(scale.short_answer).rows < rows


class FakeFleet:
    """Stands for running servers; what a step starts, stops and asks is noted."""

    def __init__(self, refused: tuple[str, ...] = ()) -> None:
        self.servers: dict[str, Any] = dict.fromkeys(("stock", "ours", "evs"))
        self.refused, self.start_seconds = refused, 1.0
        self.log: list[Any] = []
        self.notes: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.servers

    def stop(self, *names: str) -> None:
        for name in names:
            self.servers.pop(name, None)

    def start(self, plans: list[Any], at_once: int = 1) -> dict[str, str]:
        self.servers.update({plan.name: None for plan in plans if plan.name not in self.refused})
        self.log += plans
        return {plan.name: "out of memory" for plan in plans if plan.name in self.refused}


@pytest.mark.parametrize("refused", [(), ("ours_v1",)])
def test_the_second_runner_takes_the_place_of_the_first(
    context: Context, monkeypatch: pytest.MonkeyPatch, refused: tuple[str, ...]
) -> None:
    asked: list[tuple[str, str, tuple[str, ...]]] = []

    def part(name: str) -> Any:
        def measure(context: Context, fleet: FakeFleet, server: str, clock: Clock) -> dict[str, Any]:
            asked.append((name, server, tuple(fleet.servers)))
            assert clock.left > 0
            return {"figure": 1}

        return measure

    for name in cache.PARTS:
        monkeypatch.setattr(cache, f"_{name}", part(name))
    fleet = FakeFleet(refused)
    context.scale = full(H100)
    context.shared |= {"fleet": fleet, "shape": SEVEN_B, "cache": GIB, "runner": "v2"}
    (line,) = run_all([Step("kv", 60, 0, cache.run)], context, Clock(90))
    found = read(context, "kv")
    assert [(name, server) for name, server, _ in asked[:3]] == [(name, "ours") for name in cache.PARTS]
    assert [plan.environment[RUNNER] for plan in fleet.log] == ["0"]
    assert fleet.servers == {}
    if refused:
        assert line["status"] == "failed"
        assert "out of memory" in found["problems"]["v1: start"]
        assert [*found["runners"]] == ["v2"]
    else:
        assert line["status"] == "ok"
        assert asked[3:] == [(name, "ours_v1", ("stock", "ours_v1")) for name in cache.PARTS]
        assert {runner: [*parts] for runner, parts in found["runners"].items()} == {
            "v2": [*cache.PARTS], "v1": [*cache.PARTS],
        }  # fmt: skip


def test_a_model_whose_servers_do_not_start_is_reported_and_left(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = FakeFleet(refused=("ours",))
    fleet.servers.clear()
    monkeypatch.setattr(visual, "Fleet", lambda *arguments: fleet)
    context.scale = full(H100)
    first, *_ = context.scale.shapes
    step = Step("visual", 60, 0, lambda context: visual.run(context, first, keep_running=True))
    summary = run_all([step, Step("after", 9, 0, good)], context, Clock(90))
    assert states(summary) == {"visual": "failed", "after": "ok"}
    problems = read(context, "visual")["problems"]
    assert problems["start of ours"] == problems["start of ours on v2"] == "out of memory"
    assert [plan.environment[RUNNER] for plan in fleet.log if plan.name == "ours"] == ["1", "0"]
    assert "ours did not start" in summary[0]["why"]
