"""KV eviction and visual budgets inside CUDA graphs, emulated on the CPU: exact in every mode, and graphs stay on.

vLLM's own dispatcher chooses the graph of each step on either runner. On V2 its own manager captures them. On V1
they are captured by the runner's own loop and wrappers, which `tests.engine.graphs` puts in place, as vLLM's CPU runner
leaves them out when it loads a model. What is not emulated on either: graph pools and their memory, streams, pieces cut
by torch.compile (here graphs are broken at attention instead), backends that plan on the host. Graphs of the
encoder have tests of their own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import runner_v2

from .graphs_child import FAMILY, MIXED, MIXED_STEPS, SIZES, STEPS, VISUAL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
KV_STRATEGIES = ("random", "snapkv", "gui_kv")
OBSERVING = ("snapkv", "gui_kv")


@pytest.fixture(scope="module", params=["v1", "v2"])
def matrix(
    request: pytest.FixtureRequest, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What one engine answered under all modes; graphs in pieces are chosen when vLLM is imported."""
    if request.param == "v1" and runner_v2.is_on():
        pytest.skip("engines of this session run on V2")
    out = tmp_path_factory.mktemp("graphs") / "matrix.json"
    variables = {**os.environ, "VLLM_USE_BREAKABLE_CUDAGRAPH": "1"}
    variables = runner_v2.environment(variables) if request.param == "v2" else variables
    command = [sys.executable, "-m", "tests.engine.graphs_child", str(checkpoints[FAMILY]), str(out)]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(out.read_text())
    assert found["runner"] == f"Compacting{request.param.upper()}"
    return found


def test_something_was_captured_and_compacted(matrix: dict[str, Any]) -> None:
    for mode, sizes in SIZES.items():
        captured = matrix["captured"][mode]
        kinds = {name.split()[0] for name in captured}
        assert kinds == {
            "FULL" if part != "PIECEWISE" else part for part in mode.replace("_DECODE_ONLY", "").split("_AND_")
        }
        assert {int(name.split()[1]) for name in captured} == set(sizes)
        # Kernels of a full graph; graphs between the layers' attention of a broken one.
        assert all(count > (200 if name.startswith("FULL") else 3) for name, count in captured.items())
    for name in KV_STRATEGIES:
        evicting, second, none, third = matrix["eager"][name]["compactions"]
        assert min(evicting, second, third) >= 3
        assert none == 0


@pytest.mark.parametrize("mode", SIZES)
@pytest.mark.parametrize("name", KV_STRATEGIES)
def test_every_mode_is_exact(matrix: dict[str, Any], mode: str, name: str) -> None:
    run = matrix[mode][name]
    assert run["tokens"] == 4 * STEPS
    assert run["equal"] == run["tokens"]
    assert run["kept_equal"]
    assert run["apart"] < 1e-4


def test_visual_budgets_in_full_graphs_are_exact(matrix: dict[str, Any]) -> None:
    run = matrix["FULL"][VISUAL]
    assert run["equal"] == run["tokens"] == 4 * STEPS
    assert run["replayed"] == run["steps"]


@pytest.mark.parametrize("mode", SIZES)
@pytest.mark.parametrize("name", KV_STRATEGIES)
def test_observed_steps_are_replayed(matrix: dict[str, Any], mode: str, name: str) -> None:
    run = matrix[mode][name]
    # Steps with a prompt in them, which this mode has no graph for.
    prefills = run["steps"] - STEPS + 1 if mode == "FULL_DECODE_ONLY" else 0
    assert run["steps"] - run["replayed"] == prefills
    # Strategies that look at no queries plan nothing.
    assert (run["observed"] > STEPS - 5) if name in OBSERVING else run["observed"] == 0
    assert run["observed"] - run["observed_replayed"] <= prefills


def test_steps_that_observe_nothing_replay_plain_graphs(matrix: dict[str, Any]) -> None:
    for name in KV_STRATEGIES:
        # What follows the last prompt of the batch: queries of its requests, or nothing.
        kinds = matrix["FULL_DECODE_ONLY"][name]["kinds"].rpartition("e")[2]
        assert set(kinds) == ({"o"} if name in OBSERVING else {"p"})
        assert len(kinds) > STEPS - 5
    # Norms of prompts, and positions of kept visual tokens.
    assert re.fullmatch("o+p+", matrix["FULL"][VISUAL]["kinds"])


def test_a_budget_that_comes_and_goes_changes_the_graph_and_no_answer(matrix: dict[str, Any]) -> None:
    run = matrix["FULL_DECODE_ONLY"][MIXED]
    assert run["equal"] == run["tokens"] == sum(MIXED_STEPS)
    assert run["kept_equal"]
    assert run["apart"] < 1e-4
    assert run["compactions"][-1] >= 2
    arrived = MIXED_STEPS[-1] - 1
    assert re.fullmatch(f"e+p+e+o{{{arrived}}}p+", run["kinds"])


def test_a_replayed_step_without_a_budget_is_that_of_stock(matrix: dict[str, Any]) -> None:
    off = matrix["off"]
    assert off["stock model"].startswith("vllm.")
    assert off["plain"] == [*off["stock captured"].values()]
    assert off["before"] == off["stock"] == off["after"]
    # A control: what a budget costs shows in both.
    (observing,), (stock,) = off["captured"].values(), off["stock captured"].values()
    assert observing > stock
    *with_budget, alone = off["budget"]["operators"]
    *without, last = off["stock"]["operators"]
    assert all(len(one) > len(other) > stock for one, other in zip(with_budget, without, strict=True))
    # The request with the budget was the first, and has ended.
    assert alone == last


@pytest.mark.parametrize(
    ("control", "rows_too"),
    [
        ("queries not captured", True),
        ("plain graphs for all", True),
        ("norms not captured", True),
        ("lengths elsewhere", False),
        ("positions not captured", False),
    ],
)
def test_what_does_not_reach_a_graph_is_seen(matrix: dict[str, Any], control: str, rows_too: bool) -> None:
    run = matrix["controls"][control]
    assert run["replayed"] == run["steps"]
    assert run["equal"] < 0.9 * run["tokens"]
    assert run["kept_lengths_equal"]
    assert run["kept_equal"] is not rows_too
