"""Negative controls: the comparison that the engine tests rely on notices every wrong rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from . import media
from .checkpoints import CELL
from .matrix import STEPS, UNIFORM
from .media import Request
from .oracle import Expected, Item, Mismatch, Oracle, compare

pytestmark = pytest.mark.slow


class AxesSwapped(Oracle):
    """Height and width change places."""

    def positions(self, ids: Tensor, literal: Tensor, items: Sequence[Item]) -> tuple[Tensor, int]:
        positions, following = super().positions(ids, literal, items)
        return positions[[0, 2, 1]], following


class TimeFromHeight(Oracle):
    """The temporal axis repeats the height."""

    def positions(self, ids: Tensor, literal: Tensor, items: Sequence[Item]) -> tuple[Tensor, int]:
        positions, following = super().positions(ids, literal, items)
        return positions[[1, 1, 2]], following


class LikeText(Oracle):
    """Media tokens count one by one, as text does."""

    def positions(self, ids: Tensor, literal: Tensor, items: Sequence[Item]) -> tuple[Tensor, int]:
        return torch.arange(len(ids)).expand(3, -1).clone(), len(ids)


class FirstRows(Oracle):
    """The first K cells are kept, whatever the strategy says."""

    def choose(self, *args: Any) -> Tensor:
        return torch.arange(len(super().choose(*args)))


class DeepstackShifted(Oracle):
    """Deepstack rows belong to the cell before."""

    def tower(self, pixels: Tensor, thw: Tensor) -> tuple[Tensor, list[Tensor]]:
        features, levels = super().tower(pixels, thw)
        return features, [level.roll(1, 0) for level in levels]


RULES = [AxesSwapped, TimeFromHeight, LikeText, FirstRows]


def asked(family: str) -> list[Request]:
    """Wide and tall media, with a text token between items that tells one position rule from another."""
    cell = CELL[family]
    a, v = media.image(4 * cell, 6 * cell, 1), media.video(8, 4 * cell, 5 * cell, seed=5)
    long = media.video(12, 3 * cell, 3 * cell, 10, 25, 7)
    shown = [(a,), (v,), (a, v), (long, a)]
    # Under "uniform" a video's kept cells straddle every axis; an image at .5 covers every other column.
    return [media.ask(*items, visual={**UNIFORM, "keep": keep}) for items in shown for keep in (0.5, 0.3)]


@pytest.fixture(scope="module")
def right(family: str, oracles: Callable[[str], Oracle]) -> list[Expected]:
    return [oracles(family).answer(request, STEPS) for request in asked(family)]


@pytest.mark.parametrize("rule", RULES)
def test_wrong_rule_is_noticed(
    family: str, rule: type[Oracle], right: list[Expected], checkpoints: dict[str, Path]
) -> None:
    notices(rule(checkpoints[family]), family, right)


def test_shifted_deepstack_is_noticed(checkpoints: dict[str, Path], oracles: Callable[[str], Oracle]) -> None:
    family = "qwen3_vl"
    expected = [oracles(family).answer(request, STEPS) for request in asked(family)]
    notices(DeepstackShifted(checkpoints[family]), family, expected)


def notices(wrong: Oracle, family: str, right: list[Expected]) -> None:
    """Every answer under a wrong rule is told from the right one."""
    for request, expected in zip(asked(family), right, strict=True):
        with pytest.raises(Mismatch, match=r"tokens|log-probabilities"):
            compare(wrong.answer(request, STEPS), expected)


def test_right_rule_is_exact(family: str, right: list[Expected], oracles: Callable[[str], Oracle]) -> None:
    for request, expected in zip(asked(family), right, strict=True):
        assert compare(oracles(family).answer(request, STEPS), expected) == 0


def test_oracle_positions_are_those_of_transformers(family: str, oracles: Callable[[str], Oracle]) -> None:
    oracle, cell = oracles(family), CELL[family]
    shown: list[Any] = [media.image(4 * cell, 6 * cell, 1), media.image(3 * cell, 2 * cell, 2)]
    if family == "qwen3_vl":
        # After a Qwen2.5-VL video the two disagree even without pruning: vLLM counts the temporal extent.
        shown.insert(1, media.video(7, 3 * cell, 4 * cell, 24, 20, 6))
    inputs, ids, literal = oracle.expand(media.ask(*shown))
    grids = {key: inputs[key] for key in ("image_grid_thw", "video_grid_thw") if key in inputs}
    theirs, _ = oracle.hf.model.get_rope_index(inputs.input_ids, mm_token_type_ids=inputs.mm_token_type_ids, **grids)
    ours, following = oracle.positions(ids, literal, oracle.items(inputs, ids, literal))
    assert torch.equal(ours, theirs[:, 0])
    assert following == int(theirs.max()) + 1
