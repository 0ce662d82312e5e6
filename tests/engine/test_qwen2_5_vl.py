"""Qwen2.5-VL: every form of budget on every mix of media answers as transformers does without the dropped tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .engines import EnginePool
from .matrix import CHUNK, NAMES, Rounds, play, worst
from .oracle import TOLERANCE, Oracle, compare

FAMILY = "qwen2_5_vl"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def rounds(engines: EnginePool, oracles: Callable[[str], Oracle]) -> Rounds:
    return play(FAMILY, oracles(FAMILY), engines.get(FAMILY, max_num_batched_tokens=CHUNK))


@pytest.mark.parametrize("name", NAMES)
def test_cold_caches(rounds: Rounds, name: str) -> None:
    compare(rounds.cold[name], rounds.expected[name])


@pytest.mark.parametrize("name", NAMES)
def test_caches_of_the_first_round(rounds: Rounds, name: str) -> None:
    compare(rounds.cached[name], rounds.expected[name])


def test_second_round_used_the_prefix_cache(rounds: Rounds) -> None:
    assert rounds.prefix_hits > 32 * len(NAMES) // 2


def test_prompt_is_text_and_kept_tokens(rounds: Rounds) -> None:
    for name, expected in rounds.expected.items():
        full = rounds.expected[f"{name.split(', ')[0]}, none"]
        text = full.unpruned - sum(full.kept)
        assert len(rounds.cold[name].prompt) == text + sum(expected.kept)


def test_worst_error(rounds: Rounds) -> None:
    print(f"{FAMILY}: {2 * len(NAMES)} answers, largest log-probability error {worst(rounds):.1e}")
    assert worst(rounds) < TOLERANCE
