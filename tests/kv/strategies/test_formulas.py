"""Scores equal independent float64 implementations of the formulas, and planted rows are treated as they should be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vllm_prune.catalogue import KV
from vllm_prune.kv.strategies._probe import WindowOptions, probe_weights
from vllm_prune.kv.strategies.base import TEXT, LayerView, Moments

from . import long_form
from .views import advance, view

CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def scores(name: str, seen: LayerView, **options: object) -> np.ndarray:
    return KV.create(name, options).score(seen).rows[:, : seen.rows - seen.window].numpy()


@pytest.mark.parametrize("media", [0, 1, 2, 5])
@pytest.mark.parametrize(("gamma", "window"), [("0.3", 8), ("0.1", 1), ("0.9", 4)])
def test_gui_kv(media: int, gamma: str, window: int) -> None:
    for seed in range(4):
        seen = replace(view(2, 3, 50, media, window, seed), gamma=float(gamma))
        np.testing.assert_allclose(scores("gui_kv", seen), long_form.gui_kv(seen, gamma), **CLOSE)
    small = {"alpha": 0.7, "tau": 1.3, "pooling": 3, "rank": 2}
    np.testing.assert_allclose(scores("gui_kv", seen, **small), long_form.gui_kv(seen, gamma, 0.7, 1.3, 3, 2), **CLOSE)
    fewer = scores("gui_kv", seen, redundant_share=0.5)
    np.testing.assert_allclose(fewer, long_form.gui_kv(seen, gamma, flagged="0.5"), **CLOSE)
    by_text = scores("gui_kv", seen, norm_source="residual")
    np.testing.assert_allclose(by_text, long_form.gui_kv(seen, gamma, residual=True), **CLOSE)


def test_gui_kv_compares_with_a_part_of_the_key_space() -> None:
    """A basis of all 16 directions leaves nothing but rounding noise of every key; a quarter leaves most of them."""
    seen = view(2, 2, 60, 4, 8, 1)
    strategy = KV.create("gui_kv")
    outside = strategy._complement(seen.keys, torch.arange(10, 40))
    assert outside.shape == (2, 16, 12)
    torch.testing.assert_close(outside.mT @ outside, torch.eye(12).expand(2, 12, 12))
    assert (seen.keys[:, 10:14] @ outside).abs().max() < 1e-5
    keys = seen.keys[:, :10]
    assert ((keys @ outside).norm(dim=-1) / keys.norm(dim=-1)).min() > 0.4
    assert strategy.unfit(16) is None
    assert "rank 16" in (KV.create("gui_kv", {"rank": 16}).unfit(16) or "")
    assert KV.create("gui_kv", {"rank": 15}).unfit(16) is None


def test_gui_kv_takes_rounding_for_no_saliency() -> None:
    """Norms that differ in the last bits alone, as behind an RMSNorm of equal weights, move no score by much."""
    seen = view(2, 2, 60, 4, 8, 1)
    assert seen.normed_saliency is not None
    bits = torch.arange(60).remainder(3) * torch.finfo(torch.float32).eps
    equal, rounded = (torch.full_like(seen.normed_saliency, 8.0) * (1 + noise) for noise in (torch.zeros(60), bits))
    flat, noisy = (scores("gui_kv", replace(seen, normed_saliency=norms)) for norms in (equal, rounded))
    np.testing.assert_allclose(noisy, flat, atol=3e-5)
    # A spread of three in a thousand, which models have, does move them.
    spread = equal * (1 + 0.003 * torch.randn(60, generator=torch.Generator().manual_seed(0)))
    assert abs(scores("gui_kv", replace(seen, normed_saliency=spread)) - flat).max() > 0.02


def test_gui_kv_keeps_what_the_long_form_keeps() -> None:
    for seed in range(6):
        seen = view(2, 2, 60, 4, 8, seed)
        wanted = np.argsort(-long_form.gui_kv(seen, "0.3"), axis=1, kind="stable")[:, :10]
        kept = KV.create("gui_kv").select(seen, 18)[0][:, :10].numpy()
        assert (np.sort(wanted, axis=1) == kept).all()


def test_gui_kv_variants_differ_as_they_should() -> None:
    seen = view(2, 2, 60, 3, 8, 1)
    layer = KV.create("gui_kv", {"selection": "per_layer"}).select(seen, 20)[0]
    assert torch.equal(layer[0], layer[1])
    assert not torch.equal(*KV.create("gui_kv").select(seen, 20)[0])
    protected = KV.create("gui_kv", {"protect": "text"})
    text = int((seen.media[0] == TEXT).sum())
    kept = protected.select(seen, min(text, 30))[0]
    assert (seen.media.gather(1, kept) == TEXT).all()
    assert "saliency" not in KV.create("gui_kv", {"norm_source": "value"}).wanted()
    values = scores("gui_kv", replace(seen, saliency=None, normed_saliency=None), norm_source="value")
    assert not np.allclose(values, scores("gui_kv", seen))


@pytest.mark.parametrize("basis", ["lead", "stride", "gram"])
def test_gui_kv_evicts_a_repeated_screenshot_first(basis: str) -> None:
    """An earlier screenshot with the current one's keys is redundant whatever the basis, if it spans all of those."""
    seen = view(2, 2, 40, 3, 4, 0)
    media = seen.media[0]
    rows = [(media == item).nonzero().squeeze(1) for item in range(3)]
    keys = seen.keys.clone()
    count = min(len(rows[1]), len(rows[2]))
    keys[:, rows[1][:count]] = keys[:, rows[2][:count]]
    gamma = 1 - count / (len(rows[0]) + len(rows[1]))
    found = KV.create("gui_kv", {"basis": basis, "rank": 6}).score(replace(seen, keys=keys, gamma=gamma))
    assert (found.rows[:, rows[1][:count]] == -1).all()
    assert int((found.rows == -1).sum()) == 2 * count


def test_gui_kv_remembers_saliency_and_redundancy() -> None:
    seen = view(2, 2, 50, 4, 4, 2)
    strategy = KV.create("gui_kv")
    kept, first = strategy.select(seen, 46)
    later = advance(seen, kept, first, 6)
    again = strategy.score(later)
    for name in ("boost", "redundant"):
        assert torch.equal(again.carry[name][:, :46], first.carry[name].gather(1, kept))
        assert not again.carry[name][:, 46:].any()
    flagged = again.carry["redundant"] > 0
    assert flagged.any()
    assert (again.rows[flagged] == -1).all()


@pytest.mark.parametrize("window", [8, 5])
def test_gui_kv_without_media_is_snapkv_and_carries_nothing(window: int) -> None:
    seen = view(2, 2, 60, 0, window, 2)
    strategy = KV.create("gui_kv")
    kept, first = strategy.select(seen, 40)
    assert torch.equal(kept, KV.create("snapkv").select(seen, 40)[0])
    assert not first.carry
    later = advance(seen, kept, first, 6)
    assert not later.carried
    assert torch.equal(strategy.select(later, 30)[0], KV.create("snapkv").select(later, 30)[0])


def test_gui_kv_counts_redundant_rows_in_decimals() -> None:
    """(1 - 0.9) * 10 is 0.99... in floats."""
    labels = torch.full((40,), TEXT)
    labels[2:12], labels[14:20] = 0, 1
    items = (torch.arange(2, 12), torch.arange(14, 20))
    seen = replace(view(1, 1, 40, 0, 2, 0), media=labels[None], items=items, gamma=0.9)
    assert int((KV.create("gui_kv").score(seen).rows == -1).sum()) == 1


@pytest.mark.parametrize("name", ["snapkv", "pyramid_kv"])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_snapkv(mode: str, name: str) -> None:
    seen = view(2, 3, 40, 2, 8, 4)
    wanted = long_form.attention(seen).mean((1, 2))[:, :32]
    np.testing.assert_allclose(
        scores(name, seen, mode=mode, pooling=5), long_form.pooled(wanted, 5, mode == "max"), **CLOSE
    )


def test_visual_exit() -> None:
    """Of the visual tokens those stay that the window attends to most, whatever it gives to text."""
    seen = view(2, 3, 60, 4, 8, 4)
    attention = long_form.attention(seen).sum(2).mean(1)[:, :52]
    visual = (seen.media[:, :52] != TEXT).numpy()
    found = scores("visual_exit", seen)
    np.testing.assert_allclose(found[visual], attention[visual], **CLOSE)
    assert np.isposinf(found[~visual]).all()
    kept = KV.create("visual_exit").select(seen, 8 + int((~visual[0]).sum()) + 5)[0]
    for head in range(2):
        best = sorted(np.flatnonzero(visual[head]), key=lambda row, head=head: -attention[head, row])[:5]
        assert [row for row in kept[head].tolist() if row < 52 and visual[head, row]] == sorted(best)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_dyvte(mode: str) -> None:
    """In front of an exit SnapKV's choice. Behind it text by SnapKV's scores, and what is left by those of the rest."""
    seen = view(2, 3, 60, 4, 8, 4)
    wanted = long_form.pooled(long_form.attention(seen).mean((1, 2))[:, :52], 5, mode == "max")
    before, behind = (replace(seen, exited=torch.tensor(exited)) for exited in (False, True))
    np.testing.assert_allclose(scores("dyvte", before, mode=mode), wanted, **CLOSE)
    strategy, visual = KV.create("dyvte", {"mode": mode}), (seen.media[0, :52] != TEXT).numpy()
    text = int((~visual).sum())
    for count in (8 + text // 2, 8 + text, 8 + text + 7):
        assert torch.equal(
            strategy.select(before, count)[0], KV.create("snapkv", {"mode": mode}).select(seen, count)[0]
        )
        kept = strategy.select(behind, count)[0]
        for head in range(2):
            ranked = sorted(range(52), key=lambda row, head=head: (visual[row], -wanted[head, row]))
            assert kept[head].tolist() == sorted([*ranked[: count - 8], *range(52, 60)])


def test_dyvte_worked_by_hand() -> None:
    """Eight rows, of which the window's last attends to 0.4, 0.05, 0.3, 0.2 and little else; 2 and 3 are visual."""
    shares = torch.tensor([0.4, 0.05, 0.3, 0.2, 0.03, 0.01, 0.005, 0.005])
    keys = torch.zeros(1, 8, 2)
    keys[0, :, 0] = shares.log()
    media = torch.tensor([[TEXT, TEXT, 0, 0, TEXT, TEXT, TEXT, TEXT]])
    seen = replace(
        view(1, 1, 8, 0, 1), keys=keys, media=media, queries=torch.tensor([[[1.0, 0.0]]]), scale=1.0, items=()
    )
    kept = {}
    for exited in (False, True):
        one = replace(seen, exited=torch.tensor(exited))
        for count in (3, 6, 7):
            kept[exited, count] = KV.create("dyvte", {"pooling": 1}).select(one, count)[0][0].tolist()
    assert kept == {
        (False, 3): [0, 2, 7],
        (False, 6): [0, 1, 2, 3, 4, 7],
        (False, 7): [0, 1, 2, 3, 4, 5, 7],
        # As much as there is text: what the authors keep. One more: the visual token that is attended to most.
        (True, 3): [0, 1, 7],
        (True, 6): [0, 1, 4, 5, 6, 7],
        (True, 7): [0, 1, 2, 4, 5, 6, 7],
    }


def test_dyvte_ranks_what_nobody_attends_to_last() -> None:
    seen = replace(view(2, 2, 60, 3, 4, 5), exited=torch.tensor(True))
    assert seen.queries is not None
    # Attention that is exactly zero, of text and of visual tokens.
    found = KV.create("dyvte", {"pooling": 1}).score(replace(seen, queries=seen.queries * 1e4)).rows[:, :56]
    assert not found.isnan().any()
    assert (found[:, seen.media[0, :56] == TEXT] >= 0).all()
    assert (found[:, seen.media[0, :56] != TEXT] < 0).all()


def test_r_kv() -> None:
    for seed in range(3):
        seen = view(2, 2, 40, 2, 4, seed)
        keys = seen.keys.clone()
        keys[:, 20] = keys[:, 5] * 1.1 + 0.1 * keys[:, 6]
        seen = replace(seen, keys=keys)
        np.testing.assert_allclose(scores("r_kv", seen), long_form.r_kv(seen), **CLOSE)


def test_r_kv_is_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = view(2, 2, 40, 2, 4, 5)
    whole = scores("r_kv", seen)
    monkeypatch.setattr("vllm_prune.kv.strategies.r_kv.CHUNK", 300)
    np.testing.assert_allclose(scores("r_kv", seen), whole, **CLOSE)


def test_r_kv_keeps_the_latest_of_equal_rows() -> None:
    seen = view(1, 1, 40, 0, 4, 7)
    keys = seen.keys.clone()
    keys[:, 10] = keys[:, 20] = keys[:, 3]
    found = scores("r_kv", replace(seen, keys=keys), balance=0.0, similar=0.9)
    assert found[0, 20] > found[0, 10] > found[0, 3]


def test_expected_attention() -> None:
    seen = view(2, 2, 40, 2, 6, 6)
    found = scores("expected_attention", seen, sinks=0)
    np.testing.assert_allclose(found, long_form.expected_attention(seen)[:, :34], rtol=1e-3, atol=1e-5)
    sinks = KV.create("expected_attention").select(seen, 12)[0]
    assert torch.equal(sinks[:, :4], torch.arange(4).expand(2, 4))


def test_keydiff_and_knorm() -> None:
    seen = view(2, 1, 30, 1, 3, 8)
    keys = seen.keys.double().numpy()
    unit = keys / np.linalg.norm(keys, axis=2, keepdims=True)
    anchor = unit.mean(1, keepdims=True)
    cosine = (unit * anchor / np.linalg.norm(anchor, axis=2, keepdims=True)).sum(2)
    np.testing.assert_allclose(scores("keydiff", seen), -cosine[:, :27], **CLOSE)
    np.testing.assert_allclose(scores("knorm", seen), -np.linalg.norm(keys, axis=2)[:, :27], **CLOSE)


@pytest.mark.parametrize("media", [0, 3])
def test_expected_attention_of_the_whole_prompt(media: int) -> None:
    """Positions to come go on from the prompt's last, which pictures make smaller than its length."""
    seen = view(2, 3, 40, media, 6, 2)
    queries = torch.randn(30, 6, 16, generator=torch.Generator().manual_seed(5)) + 0.5
    apart = queries - queries.mean(dim=0)
    moments = Moments(queries.mean(dim=0), torch.einsum("nhd,nhe->hde", apart, apart) / 30)
    seen = replace(seen, queries=None, moments=moments)
    assert seen.coordinates is not None
    end = int(seen.coordinates[0, -1]) + 1
    assert end == 40 if media == 0 else end < 40
    options = {"queries": "prompt", "horizon": 8, "sinks": 0}
    wanted = long_form.expected_of_prompt(seen, queries.numpy(), end, 8)
    np.testing.assert_allclose(scores("expected_attention", seen, **options), wanted[:, :34], rtol=1e-3, atol=1e-5)
    plain = long_form.expected_of_prompt(seen, queries.numpy(), 40, 8)[:, :34]
    found = scores("expected_attention", replace(seen, coordinates=None), **options)
    np.testing.assert_allclose(found, plain, rtol=1e-3, atol=1e-5)
    # Later, five tokens on.
    strategy = KV.create("expected_attention", options)
    kept, first = strategy.select(seen, 30)
    later = advance(seen, kept, first, 5)
    again = long_form.expected_of_prompt(later, queries.numpy(), end + 5, 8)
    np.testing.assert_allclose(strategy.score(later).rows, again, rtol=1e-3, atol=1e-5)


def test_expected_attention_wants_what_its_queries_come_from() -> None:
    window, prompt = (KV.create("expected_attention", {"queries": queries}) for queries in ("window", "prompt"))
    assert window.wanted() == {"queries", "rotation", "values"}
    assert prompt.wanted() == {"moments", "coordinates", "rotation", "values"}
    assert (prompt.first_query, KV.create("expected_attention", {"sinks": 9}).first_query) == (4, 9)


def test_streaming_keeps_sinks_and_the_latest() -> None:
    kept = KV.create("streaming").select(view(2, 1, 30, 1, 3, 8), 10)[0]
    assert kept[0].tolist() == [0, 1, 2, 3, 24, 25, 26, 27, 28, 29]


def test_random_ranks_a_token_the_same_after_a_compaction() -> None:
    seen = view(3, 1, 60, 1, 2, 9)
    strategy = KV.create("random")
    kept, first = strategy.select(seen, 30)
    again = strategy.score(advance(seen, kept, first, 5)).rows[:, :30]
    assert torch.equal(again, first.rows.gather(1, kept))
    assert len({tuple(rows) for rows in kept.tolist()}) == 3
    assert not torch.equal(strategy.select(replace(seen, seed=10), 30)[0], kept)
    shares = torch.stack([strategy.select(replace(seen, seed=i), 31)[0].float().mean() for i in range(40)])
    assert abs(float(shares.mean()) - 29.5) < 2


@pytest.mark.parametrize("window", [1, 2, 5, 8])
def test_probe_weights(window: int) -> None:
    for seed in range(3):
        seen = view(2, 3, 40, 2, window, seed)
        found = probe_weights(seen, WindowOptions(probe="activation"))
        assert found is not None
        wanted = long_form.probe_weights(seen) if window > 1 else np.ones((2, 3, 1))
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4)
    assert probe_weights(seen, WindowOptions()) is None


def test_a_query_unlike_the_others_is_the_probe() -> None:
    """Equal queries deviate by nothing, so all count; one that differs counts alone."""
    seen = view(1, 1, 40, 0, 8, 1)
    assert seen.queries is not None
    equal = seen.queries[:1].expand(8, -1, -1).contiguous()
    weights = probe_weights(replace(seen, queries=equal), WindowOptions(probe="activation"))
    assert weights is not None
    assert weights.tolist() == [[[1.0] * 8]]
    unlike = equal.clone()
    unlike[3] *= -1
    weights = probe_weights(replace(seen, queries=unlike), WindowOptions(probe="activation"))
    assert weights is not None
    assert int(weights.argmax()) == 3
    assert float(weights[0, 0, 3]) > 6


@pytest.mark.parametrize("name", [name for name in KV.names() if "queries" in KV.strategy_class(name).needs])
def test_every_strategy_with_a_window_takes_a_probe(name: str) -> None:
    seen = view(2, 1, 60, 3, 7, 4)
    last, probed = (KV.create(name, {"probe": probe}).score(seen).rows for probe in ("last", "activation"))
    assert not torch.allclose(last, probed, rtol=1e-3)


def test_snapkv_with_a_probe() -> None:
    seen = view(2, 3, 40, 2, 8, 4)
    weights = long_form.probe_weights(seen)
    wanted = (weights[..., None] * long_form.attention(seen)).mean((1, 2))[:, :32]
    np.testing.assert_allclose(scores("snapkv", seen, probe="activation"), long_form.pooled(wanted, 5), **CLOSE)
