"""Merged tokens that carry several members' positions (PPE): answers against transformers, rotated by frequency."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from vllm_prune.catalogue import VISUAL

from . import media
from .by_index import NAME, ByIndex
from .checkpoints import CELL
from .engines import EnginePool, answer_of, compare_all, generate, model_of
from .matrix import CHUNK
from .media import Request
from .oracle import TOLERANCE, Item, Mismatch, Oracle, compare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 6


def merged(positions: int, keep: float = 0.3, strategy: str = NAME) -> dict[str, Any]:
    """A budget whose merged tokens carry so many positions."""
    return {"strategy": strategy, "keep": keep, "options": {"positions": positions}}


@pytest.fixture(autouse=True)
def _by_index() -> Iterator[None]:
    with VISUAL.including(ByIndex):
        yield


def asked(family: str) -> dict[str, Request]:
    """Requests for one batch, some of which have tokens with several positions."""
    cell = CELL[family]
    a, b, v = media.image(6 * cell, 8 * cell, 1), media.image(5 * cell, 4 * cell, 2), media.video(8, 4 * cell, 5 * cell)
    return {
        "image": media.ask(a, visual=merged(8)),
        "its neighbour": media.ask(b),
        "few positions": media.ask(b, a, visual=merged(3, 0.4)),
        "one position": media.ask(a, visual=merged(1)),
        "video": media.ask(v, visual=merged(8)),
        "many positions": media.ask(v, a, visual=merged(16, 0.2)),
        "blocks": media.ask(a, visual=merged(8, 0.3, "elastic_pool")),
        "nothing to merge": media.ask(a, visual=merged(8, 1.0)),
    }


def test_tokens_stand_where_all_their_members_stood(
    family: str, engines: EnginePool, oracles: Callable[[str], Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, requests = engines.get(family, max_num_batched_tokens=CHUNK), asked(family)
    model, largest = model_of(llm), list[tuple[int, int]]()
    assert model.one_position is None
    hand_on = model._members.hand_on

    def noted(positions: Tensor) -> Tensor:
        told = hand_on(positions)
        largest.append((int(model.cell_positions.max()), int(told.max())))
        return told

    monkeypatch.setattr(model._members, "hand_on", noted)
    # Prompts are longer than a step, so that items are split over several.
    cold, warm = (generate(llm, list(requests.values()), STEPS) for _ in range(2))
    assert sum(len(output.prompt_token_ids) for output in cold) > 4 * CHUNK
    compare_all(requests, cold, warm, lambda request: oracles(family).answer(request, STEPS))
    # The runner's positions are those of cells throughout.
    of_runner, of_model = (max(column) for column in zip(*largest, strict=True))
    assert of_runner < model._members._base <= of_model
    first, one = (answer_of(cold[list(requests).index(name)]) for name in ("image", "one position"))
    assert first.prompt == one.prompt
    assert max(abs(a - b) for a, b in zip(first.logprobs, one.logprobs, strict=True)) > 100 * TOLERANCE


class Reversed(Oracle):
    """The heaviest member has the last part."""

    def turned(self, positions: Tensor, items: list[Item]) -> Tensor | None:
        for item in items:
            if item.members is not None:
                item.members = item.members.flip(1)
        return super().turned(positions, items)


class OnlyTheCell(Oracle):
    """Every part is rotated by the cell that the others are merged into."""

    def turned(self, positions: Tensor, items: list[Item]) -> Tensor | None:
        for item in items:
            if item.members is not None:
                assert item.kept is not None
                item.members = item.kept[:, None].expand_as(item.members)
        return super().turned(positions, items)


@pytest.mark.parametrize("rule", [Reversed, OnlyTheCell])
def test_wrong_rules_are_noticed(
    family: str, rule: type[Oracle], checkpoints: dict[str, Path], oracles: Callable[[str], Oracle]
) -> None:
    wrong, right, requests = rule(checkpoints[family]), oracles(family), asked(family)
    for name in ("image", "few positions", "video", "many positions"):
        with pytest.raises(Mismatch, match=r"tokens|log-probabilities"):
            compare(wrong.answer(requests[name], STEPS), right.answer(requests[name], STEPS))
    # What is rotated by its own position alone answers to the last bits as without the option.
    alone = OnlyTheCell(checkpoints[family]).answer(requests["image"], STEPS)
    assert compare(alone, right.answer(requests["one position"], STEPS)) < TOLERANCE / 10
