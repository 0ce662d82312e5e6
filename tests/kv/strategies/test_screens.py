"""Strategies for screenshots: their formulas in float64, and what they are for on planted rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vllm_prune.catalogue import KV
from vllm_prune.kv.strategies._screens import cells
from vllm_prune.kv.strategies.base import TEXT, LayerView

from . import long_form
from .test_formulas import CLOSE, scores
from .views import DIM, advance, view


@pytest.mark.parametrize("media", [0, 1, 2, 5])
@pytest.mark.parametrize("window", [1, 4, 8])
def test_star_kv(media: int, window: int) -> None:
    for seed in range(4):
        seen = view(2, 3, 50, media, window, seed)
        np.testing.assert_allclose(scores("star_kv", seen), np.stack([long_form.star_kv(seen)] * 2), **CLOSE)
    options = {"balance": 0.9, "fading": 0.4, "memory": 0.3, "sharpest": 0.5, "flattest": 2.0}
    wanted = long_form.star_kv(seen, 0.9, 0.4, 0.3, (0.5, 2.0))
    np.testing.assert_allclose(scores("star_kv", seen, **options), np.stack([wanted] * 2), **CLOSE)


def test_star_kv_on_a_screen_with_many_cells() -> None:
    """Small ones are a single part, and tell nothing."""
    seen = _screens(2, 11, 13)
    assert np.ptp(long_form.star_kv(seen, 1.0) - long_form.star_kv(seen, 0.0)) > 1e-5
    np.testing.assert_allclose(scores("star_kv", seen, balance=1)[0], long_form.star_kv(seen, 1.0), **CLOSE)


def test_star_kv_keeps_what_the_long_form_keeps() -> None:
    for seed in range(6):
        seen = view(2, 2, 60, 4, 8, seed)
        wanted = np.argsort(-long_form.star_kv(seen), kind="stable")[:10]
        kept = KV.create("star_kv").select(seen, 18)[0][:, :10].numpy()
        assert (np.sort(wanted) == kept).all()


def test_star_kv_weighs_a_head_that_follows_places() -> None:
    """Of two heads one attends to the left half of a screen, the other to scattered cells; both as much in all."""
    seen = _screen(16, 16)
    left = torch.arange(256).remainder(16) < 8
    scattered = torch.rand(256, generator=torch.Generator().manual_seed(1)).argsort() < 128
    strategy = KV.create("star_kv")
    attention = torch.full((2, seen.rows), 0.01)
    noise = 0.001 * torch.rand(2, 256, generator=torch.Generator().manual_seed(2))
    attention[:, 2:258] = torch.stack([left, scattered]).float() + noise
    weight = strategy._weights(seen, attention)[:, 0]
    assert weight.sum() == pytest.approx(1)
    assert weight[0] > 1.2 * weight[1]
    alike = KV.create("star_kv", {"balance": 0})._weights(seen, attention)[:, 0]
    assert alike.tolist() == [0.5, 0.5]


def test_star_kv_fades_what_stays_attended() -> None:
    """A head that looks at the same place of all three screenshots discounts the oldest twice as much as the next."""
    seen = _screens(3, 4, 4, heads=1)
    attention = torch.zeros(1, seen.rows)
    for item in seen.items:
        attention[:, item[:4]] = 1
    strategy = KV.create("star_kv")
    stale = strategy._staleness(seen, attention)
    assert [stale[0, item].unique().tolist() for item in seen.items] == [[2], [1], [0]]
    assert not stale[:, seen.media[0] == TEXT].any()
    # One that moves from top to bottom discounts nothing.
    moving = torch.zeros(1, seen.rows)
    for item, place in zip(seen.items, (0, 1, 3), strict=True):
        moving[:, item[4 * place : 4 * place + 4]] = 1
    assert not strategy._staleness(seen, moving).any()


@pytest.mark.parametrize("name", ["star_kv", "st_lite"])
def test_what_was_seen_of_screens_is_carried(name: str) -> None:
    seen = view(2, 2, 50, 4, 4, 2)
    strategy = KV.create(name)
    kept, first = strategy.select(seen, 40)
    again = strategy.score(advance(seen, kept, first, 6))
    assert set(again.carry) == set(first.carry)
    for carried, before in first.carry.items():
        assert torch.equal(again.carry[carried][:, :40], before.gather(1, kept))


@pytest.mark.parametrize("name", ["star_kv", "st_lite"])
def test_models_with_one_position_per_token(name: str) -> None:
    """A screenshot is one long row then."""
    seen = replace(view(2, 2, 60, 4, 8, 3), coordinates=None)
    assert cells(seen, seen.items[1]).tolist()[2] == list(range(len(seen.items[1])))
    assert scores(name, seen).max() > scores(name, seen).min()


def test_cells_of_images_and_videos() -> None:
    """Origins are those of the item, or of each frame where text stands between frames; pruning moves none."""
    frames = torch.tensor([[9, 9, 11, 11], [9, 10, 9, 10], [12, 9, 9, 9]])
    apart = torch.tensor([[9, 9, 20, 20], [9, 10, 20, 21], [12, 9, 20, 20]])
    cut = torch.tensor([[9, 9, 9, 9], [11, 11, 12, 13], [12, 13, 10, 10]])
    seen, item = view(1, 1, 20, 1, 2), torch.arange(4)
    for coordinates, wanted in (
        (frames, [[0, 0, 2, 2], [0, 1, 0, 1], [3, 0, 0, 0]]),
        (apart, [[0, 0, 11, 11], [0, 1, 0, 1], [3, 0, 0, 0]]),
        (cut, [[0, 0, 0, 0], [2, 2, 3, 4], [3, 4, 1, 1]]),
    ):
        assert cells(replace(seen, coordinates=coordinates), item).tolist() == wanted


@pytest.mark.parametrize("media", [0, 1, 2, 5])
def test_st_lite(media: int) -> None:
    for seed in range(4):
        seen = _with_repeats(view(2, 3, 50, media, 4, seed))
        np.testing.assert_allclose(scores("st_lite", seen), long_form.st_lite(seen, "0.3"), **CLOSE)
    wanted = long_form.st_lite(replace(seen, gamma=0.8), "0.8", 0.3, "0.5")
    options = {"alpha": 0.3, "redundant_share": 0.5}
    np.testing.assert_allclose(scores("st_lite", replace(seen, gamma=0.8), **options), wanted, **CLOSE)


def _with_repeats(seen: LayerView) -> LayerView:
    """Every second visual token of an earlier screenshot has the value of one of the current screenshot, but longer."""
    values = seen.values().clone()
    for item in seen.items[:-1]:
        values[:, item[::2]] = 3 * values[:, seen.items[-1][:1]]
    return replace(seen, values=lambda: values)


def test_st_lite_evicts_what_the_current_screenshot_shows_again_first() -> None:
    seen = _with_repeats(view(2, 2, 40, 3, 4, 0))
    repeated = torch.cat([item[::2] for item in seen.items[:-1]])
    earlier = sum(len(item) for item in seen.items[:-1])
    # Just as many are flagged as are repeated.
    exactly = replace(seen, gamma=1 - len(repeated) / earlier)
    flagged = KV.create("st_lite").score(exactly).carry["repeated"]
    assert [head.nonzero().squeeze(1).tolist() for head in flagged] == [sorted(repeated.tolist())] * 2
    kept = KV.create("st_lite").select(exactly, 40 - len(repeated))[0]
    for head in kept:
        assert not set(head.tolist()) & set(repeated.tolist())


def test_st_lite_keeps_the_neighbourhood_of_a_salient_token() -> None:
    """The cell above a salient one is a whole row of cells away from it in the cache."""
    seen = _screen(6, 6)
    norms = torch.ones(2, seen.rows)
    norms[:, 2 + 3 * 6 + 2] = 2
    boost = KV.create("st_lite").score(replace(seen, normed_saliency=norms)).carry["boost"][0, 2:38].view(6, 6)
    assert boost.sum() == pytest.approx(1)
    inner = boost[1:5, 1:5]
    around = torch.zeros(4, 4, dtype=torch.bool)
    around[1:4, 0:3] = True
    assert inner[around].min() > inner[~around].max()
    assert (boost == boost.max()).nonzero().tolist() == [[3, 2]]


def _screen(deep: int, across: int) -> LayerView:
    return _screens(1, deep, across)


def _screens(count: int, deep: int, across: int, heads: int = 2) -> LayerView:
    """Screenshots after two tokens of text, each with a token of text behind it."""
    size = deep * across
    rows = 2 + count * (size + 1) + 8
    seen = view(heads, 1, rows, 0, 4)
    media, places = torch.full((rows,), TEXT), torch.arange(rows).repeat(3, 1)
    items = []
    for number in range(count):
        start = 2 + number * (size + 1)
        item = torch.arange(start, start + size)
        media[item] = number
        places[0, item] = start
        places[1, item] = start + torch.arange(size) // across
        places[2, item] = start + torch.arange(size) % across
        items.append(item)
    assert seen.keys.shape[2] == DIM
    return replace(seen, media=media.expand(len(seen.keys), rows), items=tuple(items), coordinates=places)
