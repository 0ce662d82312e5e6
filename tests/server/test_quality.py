"""The demo model answers over HTTP, and the default image strategy keeps what the answer needs."""

from __future__ import annotations

import json

import pytest

from benchmarks.demo_model.evaluate import FOLDER
from benchmarks.quality import AFTER_EVICTION, MARGIN, answered, beats_random, held_out, screens
from benchmarks.servers import Server
from vllm_prune.budget.fields import DEFAULT_STRATEGY
from vllm_prune.sweep import Arm, kv_arms, run, visual_arms
from vllm_prune.sweep.client import Client

from .conftest import BUNDLED, DEMO

SAMPLES = 200
KV_SAMPLES = 60
EACH = 24

pytestmark = pytest.mark.skipif(DEMO != BUNDLED, reason="another checkpoint does not know these screens")


def by_strategy(server: Server, model: str, arms: list[Arm], n: int, **extra: object) -> dict[str, list[bool]]:
    """Right or wrong per sample, by strategy."""
    cells = run(Client(server.url), model, screens(n, dict(extra)), arms)
    return {cell.arm.strategy: [answer.right for answer in cell.answers] for cell in cells}


@pytest.fixture(scope="module")
def half(server: Server, model: str) -> dict[str, list[bool]]:
    """Answers with half of the visual tokens; nothing is claimed here about plain resizing."""
    arms = visual_arms([DEFAULT_STRATEGY["image"], "gui_dedup"], [0.5])
    return by_strategy(server, model, [arm for arm in arms if arm.strategy != "resize"], SAMPLES)


def share(right: list[bool]) -> float:
    return sum(right) / len(right)


def test_unpruned_answers_are_right(half: dict[str, list[bool]]) -> None:
    assert share(half["unpruned"]) >= 0.98


@pytest.mark.parametrize("name", [DEFAULT_STRATEGY["image"], "gui_dedup"])
def test_half_of_the_tokens_is_enough_when_chosen_well(half: dict[str, list[bool]], name: str) -> None:
    assert share(half[name]) >= 0.9
    assert beats_random(half[name], half["random"]), f"not {MARGIN} better than random with 95% confidence"


def test_baselines_do_not_beat_random(half: dict[str, list[bool]]) -> None:
    assert not beats_random(half["uniform"], half["random"])
    assert not beats_random(half["random"], half["random"])


def test_the_answer_is_decided_on_the_evicted_cache(server: Server, model: str) -> None:
    answers = by_strategy(server, model, kv_arms(["snapkv"], [0.2]), KV_SAMPLES, **AFTER_EVICTION)
    assert share(answers["unpruned"]) >= 0.95
    assert share(answers["random"]) <= share(answers["unpruned"]) - 0.2
    assert share(answers["snapkv"]) > share(answers["random"])


def test_every_task_is_answered_as_its_evaluation_says(server: Server, model: str) -> None:
    stated = json.loads((FOLDER / "evaluation.json").read_text())["tasks"]
    samples = held_out(answered(), EACH)
    (cell,) = run(Client(server.url), model, samples, [])
    for task in answered():
        right = [answer.right for answer, one in zip(cell.answers, samples, strict=True) if one.group == task]
        # Four standard errors of 24 samples; a server that sees another picture or position is at chance.
        share_stated = stated[task]["accuracy"]
        assert share(right) >= share_stated - 4 * (max(0.04, share_stated * (1 - share_stated)) / EACH) ** 0.5, task
