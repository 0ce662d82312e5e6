"""The demo model answers over HTTP, and the default image strategy keeps what the answer needs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from benchmarks.tasks import sample

from .conftest import BUNDLED, DEMO

SAMPLES = [sample("test", i) for i in range(60)]

pytestmark = pytest.mark.skipif(DEMO != BUNDLED, reason="another checkpoint does not know these screens")


@pytest.fixture(scope="module")
def share(client: openai.OpenAI, model: str) -> Any:
    """Share of right answers under a `pruning` field."""

    def ask(one: Any, pruning: Any) -> bool:
        answer = client.chat.completions.create(
            model=model, messages=one.to_chat(), max_tokens=6, temperature=0, extra_body={"pruning": pruning}
        )
        return answer.choices[0].message.content.strip() == one.answer

    def of(pruning: Any) -> float:
        with ThreadPoolExecutor(8) as pool:
            return sum(pool.map(lambda one: ask(one, pruning), SAMPLES)) / len(SAMPLES)

    return of


def test_unpruned_answers_are_right(share: Any) -> None:
    assert share({"visual": None}) >= 0.95


@pytest.mark.parametrize(
    "visual", [{"keep": 0.5}, {"keep": 0.5, "strategy": "gui_dedup"}], ids=["default", "gui_dedup"]
)
def test_half_of_the_tokens_is_enough_when_chosen_well(share: Any, visual: dict[str, Any]) -> None:
    chosen, random = share({"visual": visual}), share({"visual": {"keep": 0.5, "strategy": "random"}})
    assert chosen >= 0.85
    assert chosen >= random + 0.2
