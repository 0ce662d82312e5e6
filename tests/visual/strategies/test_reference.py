"""Strategies beside independent float64 implementations of what they are, and beside examples worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid
from vllm_prune.visual.strategies import maths
from vllm_prune.visual.strategies.base import Context, PixelStrategy, Reduction
from vllm_prune.visual.strategies.holitom import best_windows

from . import long_form

NOTHING = Context()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kept_by(
    name: str, tokens: Tensor, grid: Grid, count: int, context: Context = NOTHING, **options: object
) -> list[int]:
    return VISUAL.create(name, options).select(tokens, grid, count, context).tolist()


def reduced(
    name: str, tokens: Tensor, grid: Grid, count: int, context: Context = NOTHING, **options: object
) -> Reduction:
    return VISUAL.create(name, options).reduce(tokens, grid, count, context)


@pytest.mark.parametrize("count", [1, 2, 7, 16])
@pytest.mark.parametrize("seed", range(3))
def test_todre_is_the_greedy_sum_of_distances(count: int, seed: int) -> None:
    tokens = noise(60, 24, seed=seed)
    assert kept_by("todre", tokens, Grid(1, 6, 10), count) == long_form.max_sum(tokens.double().numpy(), count)


@pytest.mark.parametrize("count", [1, 9, 32])
def test_todre_by_k_center(count: int) -> None:
    tokens = noise(60, 24)
    kept = kept_by("todre", tokens, Grid(1, 6, 10), count, rule="k_center")
    assert kept == long_form.k_center(tokens.double().numpy(), count)


def test_todre_in_blocks_is_near_the_greedy_sum() -> None:
    tokens = noise(200, 24)
    cosine = maths.unit_rows(tokens) @ maths.unit_rows(tokens).T
    exact, blocks, random = (
        float((1 - cosine[kept][:, kept]).mean())
        for kept in (
            long_form.max_sum(tokens.double().numpy(), 60),
            kept_by("todre", tokens, Grid(1, 10, 20), 60),
            list(range(60)),
        )
    )
    assert blocks > exact - 0.05 * (exact - random)


@pytest.mark.parametrize(("importance", "balance"), [("norm", 0.5), ("selector", 0.8), ("attention", 0.3)])
@pytest.mark.parametrize("count", [1, 5, 32])
def test_idpruner_is_maximal_marginal_relevance(importance: str, balance: float, count: int) -> None:
    tokens, signal = noise(60, 24), torch.rand(60, generator=torch.Generator().manual_seed(1))
    context = Context(scores=signal) if importance == "selector" else Context(tower_attention=signal)
    by = tokens.norm(dim=1) if importance == "norm" else signal
    kept = kept_by("idpruner", tokens, Grid(1, 6, 10), count, context, importance=importance, balance=balance)
    assert kept == long_form.relevance(tokens.double().numpy(), by.double().numpy(), count, balance)


def test_idpruner_needs_what_its_option_names() -> None:
    assert VISUAL.create("idpruner").wanted() == frozenset()
    for importance, signal in (("selector", "selector"), ("attention", "tower_attention")):
        strategy = VISUAL.create("idpruner", {"importance": importance})
        assert strategy.wanted() == {signal}
        with pytest.raises(ValueError, match=signal):
            strategy.select(noise(6, 4), Grid(1, 2, 3), 2, Context())


@pytest.mark.parametrize("count", [6, 17, 30])
@pytest.mark.parametrize("seed", range(3))
def test_vcast(count: int, seed: int) -> None:
    tokens = noise(6, 20, 16, seed=seed) + 2 * noise(6, 1, 16, seed=seed + 9)
    kept = kept_by("vcast", tokens.flatten(0, 1), Grid(6, 4, 5), count)
    assert kept == long_form.vcast(tokens.double().numpy(), count)


def test_vcast_spends_where_the_video_turns() -> None:
    """Five frames along a line and back: the turning point has the largest curvature."""
    means = torch.eye(4)[0] + torch.tensor([0.0, 1, 2, 1, 0])[:, None] * torch.eye(4)[1]
    tokens = (means[:, None] + 0.01 * noise(5, 12, 4)).flatten(0, 1)
    kept = torch.tensor(kept_by("vcast", tokens, Grid(5, 3, 4), 20, temperature=0.3))
    per_frame = torch.bincount(kept // 12, minlength=5)
    assert per_frame.argmax() == 2
    assert per_frame[1] < per_frame[0] < per_frame[2]


def test_slowfast_by_hand() -> None:
    """Of each frame the token nearest to its mean; of frames 1 and 4, four others each, evenly spaced."""
    frames = noise(6, 9, 8) + 3
    tokens, grid = frames.flatten(0, 1), Grid(6, 3, 3)
    similar = (maths.unit_rows(frames) * maths.unit_rows(frames.mean(1, keepdim=True))).sum(-1)
    central = (similar.argmax(1) + 9 * torch.arange(6)).tolist()
    others = {t: [c for c in range(9 * t, 9 * t + 9) if c != central[t]] for t in (1, 4)}
    wanted = sorted([*central, *(others[t][i] for t in (1, 4) for i in (1, 3, 5, 7))])
    assert kept_by("slowfast", tokens, grid, 14, slow=2) == wanted
    # Fewer tokens than frames: evenly spaced frames have one.
    assert kept_by("slowfast", tokens, grid, 3) == [central[1], central[3], central[5]]
    # More than the slow frames hold: more frames are slow.
    assert len(kept_by("slowfast", tokens, grid, 50, slow=1)) == 50


def cells(contents: list[int]) -> maths.Cells:  # type: ignore[name-defined]
    return maths.cells_of(torch.tensor(contents)[:, None].expand(-1, 8).float())


def test_pixel_exact_keeps_each_content_once() -> None:
    strategy = VISUAL.create("pixel_exact")
    assert isinstance(strategy, PixelStrategy)

    def kept(count: int) -> list[int]:
        return strategy.select_cells(cells([5, 5, 7, 5, 7, 9, 3, 3]), Grid(1, 2, 4), count, ()).tolist()

    assert kept(4) == [0, 2, 5, 6]
    assert set(kept(6)) > {0, 2, 5, 6}
    assert kept(2) == [0, 5]
    assert set(kept(3)) < {0, 2, 5, 6}
    # In a video, what an earlier frame showed is a repeat; each frame keeps a token where they suffice.
    film = strategy.select_cells(cells([1, 2, 3, 1, 2, 3, 1, 2, 4]), Grid(3, 1, 3), 5, ()).tolist()
    assert {0, 1, 2, 8} < set(film)
    assert {cell // 3 for cell in film} == {0, 1, 2}


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_vqtoken_kmeans(steps: int) -> None:
    tokens = noise(40, 12)
    first = long_form.farthest(
        tokens.double().numpy(), int((maths.unit_rows(tokens) @ maths.unit_rows(tokens).mean(0)).argmin()), 7
    )
    kept, owner = long_form.lloyd(tokens.double().numpy(), first, steps, False)
    got = reduced("vqtoken_kmeans", tokens, Grid(1, 5, 8), 7, steps=steps)
    assert got.kept.tolist() == sorted(kept)
    wanted = [tokens.double().numpy()[owner == kept.index(one)].mean(0) for one in sorted(kept)]
    np.testing.assert_allclose(got.rows(tokens), np.stack(wanted), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [0, 3])
def test_centerclip_is_k_medoids_in_each_segment(steps: int) -> None:
    tokens, kept = noise(60, 12), []
    for segment in range(2):
        part = tokens[30 * segment : 30 * segment + 30].double().numpy()
        first = long_form.farthest(part, int(np.linalg.norm(part, axis=1).argmax()), 6)
        kept += [one + 30 * segment for one in long_form.lloyd(part, first, steps, True)[0]]
    assert kept_by("centerclip", tokens, Grid(4, 3, 5), 12, steps=steps) == sorted(kept)


def test_density_peaks() -> None:
    for seed in range(4):
        rows = noise(30, 6, seed=seed) / 3
        wanted = long_form.density_peaks(rows.double().numpy(), 8, 4)
        assert maths.density_peaks(rows, 8, 4).tolist() == wanted
        assert len(maths.density_peaks(rows[:3], 3, 7)) == 3


def test_sinkhorn_arrives_where_alternate_fits_do() -> None:
    cost = torch.rand(3, 9, 4, generator=torch.Generator().manual_seed(0))
    plan = maths.sinkhorn(cost, steps=400)
    for one, wanted in zip(plan, cost.double().numpy(), strict=True):
        np.testing.assert_allclose(one, long_form.sinkhorn(wanted), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(plan.sum(2), torch.full((3, 9), 1 / 9))
    torch.testing.assert_close(maths.sinkhorn(cost).sum(1), torch.full((3, 4), 1 / 4), rtol=0.02, atol=0)


def test_scenes_by_hand() -> None:
    assert maths.scenes([0.99, 0.5, 0.95, 0.97], 1, 0.9) == [range(2), range(2, 5)]
    assert maths.scenes([0.99, 0.5, 0.95, 0.97], 3, 0.9) == [range(2), range(2, 3), range(3, 5)]
    assert maths.scenes([0.99, 0.5], 8, 0.9) == [range(1), range(1, 2), range(2, 3)]
    assert maths.scenes([], 8, 0.9) == [range(1)]


def test_fastvid() -> None:
    """Two scenes of two frames; a share of 10 each: 3 attended ones of each frame, 4 density peaks of the last."""
    grid, count = Grid(4, 4, 5), 20
    base = noise(2, 1, 16).repeat_interleave(2, 0) * 4
    tokens = (noise(4, 20, 16, seed=1) + base).flatten(0, 1)
    attention = torch.rand(80, generator=torch.Generator().manual_seed(2))
    got = reduced("fastvid", tokens, grid, count, Context(tower_attention=attention), scenes=2, alike=-1.0)
    rows, kept, wanted = tokens.double().numpy(), [], {}
    for scene in (range(40), range(40, 80)):
        seen = []
        for start in (scene.start, scene.start + 20):
            seen += sorted(range(start, start + 20), key=lambda i: -attention[i])[:3]
        left = [i for i in range(scene.start + 20, scene.stop) if i not in seen]
        dense = [left[i] for i in long_form.density_peaks(rows[left] / 4, 4, 4)]
        # A center is among those that are merged into it.
        owner = {
            i: dense[int(np.argmax(long_form.unit(rows[dense]) @ long_form.unit(rows[i])))]
            for i in set(scene) - set(seen)
        }
        wanted |= long_form.absorbed(rows, dense, owner, 0.6) | {i: rows[i] for i in seen}
        kept += dense + seen
    assert got.kept.tolist() == sorted(kept)
    np.testing.assert_allclose(got.rows(tokens), np.stack([wanted[i] for i in sorted(kept)]), rtol=1e-4, atol=1e-5)


def test_fastvid_merges_into_every_frame_that_has_centers() -> None:
    """A scene of eight frames has centers in its fourth and eighth; each takes up the whole scene."""
    grid = Grid(8, 2, 4)
    tokens = noise(64, 16) + 3
    attention = torch.rand(64, generator=torch.Generator().manual_seed(2))
    got = reduced("fastvid", tokens, grid, 20, Context(tower_attention=attention), scenes=1, alike=-1.0)
    frames = [i // 8 for i in got.kept.tolist()]
    assert [frames.count(t) for t in range(8)] == [2, 2, 2, 6, 1, 1, 1, 5]
    # One row stands out in one channel: with a share of it in every frame of centers, more than one row has it.
    marked = torch.zeros(64, 1)
    marked[int(attention.argmin())] = 1
    assert (got.rows(marked) > 0).sum() == 2


def test_best_windows_by_hand() -> None:
    """Two frames alike in 3 cells, then a cut, then two in 2: saves 3 + 2, as three alike in one would."""
    static = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 0, 1]]).bool()
    assert best_windows(static) == [range(2), range(2, 3), range(3, 5)]
    assert best_windows(static[:0]) == [range(1)]
    # What saves nothing is no window.
    assert best_windows(static[1:2]) == [range(1), range(1, 2)]
    # Three cells for one frame and one for two are five; one for four would be four.
    assert best_windows(torch.tensor([[1, 1, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0]]).bool()) == [range(2), range(2, 5)]
    assert best_windows(torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 0]]).bool()) == [range(4)]
    assert best_windows(torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]).bool()) == [range(2), range(2, 3)]


def test_holitom_by_hand() -> None:
    """A still left column and a changing right one: a mean of the still cells, each frame's attended changing cell."""
    grid = Grid(3, 2, 2)
    frames = noise(3, 4, 32)
    frames[:, [0, 2]] = frames[:1, [0, 2]] + 0.01 * noise(3, 2, 32, seed=1)
    tokens = frames.flatten(0, 1)
    attention = torch.tensor([0.9, 0.1, 0.9, 0.2, 0.9, 0.8, 0.9, 0.7, 0.9, 0.3, 0.9, 0.4])
    got = reduced("holitom", tokens, grid, 4, Context(tower_attention=attention))
    # Both still cells are as dense as the other, so the lower one is the center and takes the other up.
    assert got.kept.tolist() == [0, 3, 5, 11]
    wanted = torch.stack([0.6 * frames[:, 0].mean(0) + 0.4 * frames[:, 2].mean(0), *tokens[[3, 5, 11]]])
    torch.testing.assert_close(got.rows(tokens), wanted, rtol=1e-4, atol=1e-5)
    # With room for more than is different, the repeats that changed most stay as they are.
    more = reduced("holitom", tokens, grid, 10, Context(tower_attention=attention))
    by_change = sorted((4, 6, 8, 10), key=lambda i: float(torch.cosine_similarity(tokens[i], tokens[i - 4], 0)))
    assert set(more.kept.tolist()) == {0, 1, 2, 3, 5, 7, 9, 11, *by_change[:2]}


def test_trajectory_follows_what_moves() -> None:
    """Four contents on a line, moving one cell a frame; what comes in on the left is new."""
    world = noise(8, 32)
    frames = torch.stack([world[3 - t : 7 - t] for t in range(4)])
    tokens = frames.flatten(0, 1)
    got = reduced("trajectory", tokens + 0.001 * noise(16, 32, seed=1), Grid(4, 1, 4), 7)
    assert got.kept.tolist() == [0, 1, 2, 3, 4, 8, 12]
    torch.testing.assert_close(got.rows(tokens)[0], world[3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.rows(tokens)[4], world[2], rtol=1e-4, atol=1e-4)
    # Without a radius nothing is found again, and the links that there are join what is not alike.
    assert reduced("trajectory", tokens, Grid(4, 1, 4), 7, radius=0).kept.tolist() != got.kept.tolist()
    # Fewer than a frame has: tracks are grouped.
    few = reduced("trajectory", tokens, Grid(4, 1, 4), 2)
    assert set(few.kept.tolist()) < {0, 1, 2, 3}


def test_elastic_pool_by_hand() -> None:
    """Nine tokens of a 6 x 6 frame: four blocks of 3 x 3, and the five that are least like theirs."""
    tokens = torch.ones(36, 8) + 0.01 * noise(36, 8)
    odd = [0, 4, 14, 20, 35]
    tokens[odd] = noise(5, 8, seed=3)
    got = reduced("elastic_pool", tokens, Grid(1, 6, 6), 9)
    assert got.kept.tolist() == sorted([7, 10, 25, 28, *odd])
    rows = got.rows(tokens)
    for place, one in enumerate(got.kept.tolist()):
        if one in odd:
            assert torch.equal(rows[place], tokens[one])
        else:
            top, left = one // 18 * 3, one % 6 // 3 * 3
            block = [r * 6 + c for r in range(top, top + 3) for c in range(left, left + 3)]
            torch.testing.assert_close(rows[place], tokens[[i for i in block if i not in odd]].mean(0))


def test_tempme_by_hand() -> None:
    """Two frames of four tokens in two kinds: inside frames equals merge, then the frames do."""
    kinds = noise(2, 16)
    tokens = torch.stack([kinds[0], kinds[0], kinds[1], kinds[1]]).repeat(2, 1) + 0.001 * noise(8, 16, seed=1)
    got = reduced("tempme", tokens, Grid(2, 2, 2), 2)
    assert got.kept.tolist() == [0, 2]
    torch.testing.assert_close(
        got.rows(tokens), torch.stack([tokens[[0, 1, 4, 5]].mean(0), tokens[[2, 3, 6, 7]].mean(0)])
    )
    half = reduced("tempme", tokens, Grid(2, 2, 2), 4)
    assert len(half.kept) == 4


def aot_long_form(rows: np.ndarray, attention: np.ndarray, each: int, fresh: list[int]) -> dict[int, np.ndarray]:
    """A clip of frames of 4 x 5 cells, which are one window, in loops; with 50 Sinkhorn steps' precision."""
    frames, cells = rows.shape[:2]
    merged, anchors = [], []
    for t in range(frames):
        chosen = [int(i) for i in np.argsort(-attention[t], kind="stable")[:each]]
        others = [i for i in range(cells) if i not in chosen]
        units = long_form.unit(rows[t])
        place = np.array([[i // 5 / 3, i % 5 / 4] for i in range(cells)])
        cosine = units[others] @ units[chosen].T
        away = np.linalg.norm(place[others][:, None] - place[chosen][None], axis=2)
        plan = long_form.sinkhorn(1 - cosine + 0.5 * away)
        out = []
        for n, anchor in enumerate(chosen):
            gentle = (rows[t][anchor] + plan[:, n] @ rows[t][others]) / (1 + plan[:, n].sum())
            mine = [rows[t][others[m]] for m in range(len(others)) if cosine[m].argmax() == n]
            out.append(0.9 * gentle + 0.1 * np.mean([rows[t][anchor], *mine], axis=0))
        merged.append(np.stack(out))
        anchors.append(chosen)
    first, result = merged[0], {}
    for t in range(1, frames):
        cost = 1 - long_form.unit(merged[t]) @ long_form.unit(first).T
        cost = (cost - cost.min()) * (1 - np.exp(-(t**2) / (2 * 1.5**2)))
        plan = long_form.sinkhorn(cost)
        plan = plan / plan.sum(1, keepdims=True)
        total, weight = first.copy(), np.ones(each)
        alone = np.argsort(plan.max(1), kind="stable")[: fresh[t - 1]]
        for m in range(each):
            if m in alone:
                result[t * cells + anchors[t][m]] = merged[t][m]
            else:
                total += plan[m][:, None] * merged[t][m]
                weight += plan[m]
        first = total / weight[:, None]
    return result | {anchor: first[n] for n, anchor in enumerate(anchors[0])}


@pytest.mark.parametrize("seed", range(3))
def test_aot(seed: int) -> None:
    """K = 10 over four frames: round(10 / (1 + 0.3 * 3)) = 5 anchors, and 2 + 2 + 1 fresh ones."""
    grid = Grid(4, 4, 5)
    tokens = noise(80, 16, seed=seed)
    attention = torch.rand(80, generator=torch.Generator().manual_seed(seed))
    got = reduced("aot", tokens, grid, 10, Context(tower_attention=attention))
    wanted = aot_long_form(tokens.view(4, 20, 16).double().numpy(), attention.view(4, 20).numpy(), 5, [2, 2, 1])
    assert got.kept.tolist() == sorted(wanted)
    np.testing.assert_allclose(got.rows(tokens), np.stack([wanted[i] for i in sorted(wanted)]), rtol=0.02, atol=0.01)


def test_aot_takes_local_anchors_from_every_window() -> None:
    """Two windows of 9 x 9: all attention lies in the left one, and half of the anchors come from both in turn."""
    attention = torch.rand(9, 18, generator=torch.Generator().manual_seed(0))
    attention[:, :9] += 5
    kept = kept_by("aot", noise(162, 8), Grid(1, 9, 18), 20, Context(tower_attention=attention.flatten()))
    assert sum(cell % 18 >= 9 for cell in kept) == 5
