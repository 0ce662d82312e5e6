"""One test or more per strategy that fails when its selection is turned upside down."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid
from vllm_prune.visual.strategies.base import Cells, Context, PixelStrategy
from vllm_prune.visual.strategies.maths import cells_of, unit_rows


def kept_by(name: str, tokens: Tensor, grid: Grid, count: int, **options: object) -> list[int]:
    return VISUAL.create(name, options).select(tokens, grid, count, Context(seed=5)).tolist()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_none_keeps_all_or_nothing():
    with pytest.raises(ValueError, match="keeps all 6 tokens"):
        kept_by("none", noise(6, 2), Grid(1, 2, 3), 5)


def test_uniform_is_evenly_spaced():
    assert kept_by("uniform", noise(10, 2), Grid(1, 2, 5), 5) == [1, 3, 5, 7, 9]
    assert kept_by("uniform", noise(9, 2), Grid(1, 3, 3), 1) == [4]


def test_random_is_fair_and_follows_the_seed():
    grid, strategy, tokens = Grid(1, 4, 5), VISUAL.create("random"), noise(20, 2)
    kept = torch.stack([strategy.select(tokens, grid, 10, Context(seed)) for seed in range(400)])
    assert len({tuple(row) for row in kept.tolist()}) == 400
    share = torch.bincount(kept.flatten(), minlength=20) / 400
    assert share.min() > 0.4
    assert share.max() < 0.6


def moving_square(grid: Grid) -> tuple[Tensor, list[int]]:
    """A still background with one other cell that moves right; also the cells that change."""
    frames = noise(1, grid.rows, grid.cols, 16).repeat(grid.frames, 1, 1, 1)
    for t in range(grid.frames):
        frames[t, 1, t] = 5
    changed = [t * grid.per_frame + grid.cols + x for t in range(1, grid.frames) for x in (t - 1, t)]
    return frames.view(grid.tokens, -1), changed


def test_evs_keeps_the_first_frame_and_what_moves():
    grid = Grid(4, 3, 5)
    tokens, changed = moving_square(grid)
    kept = kept_by("evs", tokens, grid, grid.per_frame + len(changed))
    assert kept == [*range(grid.per_frame), *changed]


def test_evs_below_one_frame_spreads_over_the_first():
    grid = Grid(3, 2, 5)
    assert kept_by("evs", noise(30, 8), grid, 5) == [1, 3, 5, 7, 9]


def test_evs_inside_frames():
    grid = Grid(4, 3, 5)
    tokens, changed = moving_square(grid)
    kept = VISUAL.create("evs").select(tokens, grid, 11, Context(), [5, 2, 2, 2]).tolist()
    assert kept == [1, 4, 7, 10, 13, *changed]


@pytest.mark.parametrize("frames", [1, 4])
def test_vidcom2_keeps_what_differs(frames: int):
    grid = Grid(frames, 5, 6)
    tokens = noise(1, 64) + 0.01 * noise(grid.tokens, 64, seed=1)
    odd = [t * grid.per_frame + cell for t in range(frames) for cell in (3, 11, 22)]
    tokens[odd] = noise(len(odd), 64, seed=2)
    assert set(odd) <= set(kept_by("vidcom2", tokens, grid, 2 * len(odd)))
    assert VISUAL.create("vidcom2").select(tokens, grid, len(odd), Context(), [3] * frames).tolist() == odd


def pan(grid: Grid) -> tuple[Tensor, list[int]]:
    """A random texture under a camera that moves right by a cell per frame; also the cells that come into view."""
    world = noise(grid.rows, grid.cols + grid.frames, 32)
    frames = torch.stack([world[:, t : t + grid.cols] for t in range(grid.frames)])
    fresh = [t * grid.per_frame + (y + 1) * grid.cols - 1 for t in range(1, grid.frames) for y in range(grid.rows)]
    return frames.reshape(grid.tokens, -1), fresh


def test_mc_evs_takes_a_pan_for_known_content_and_evs_does_not():
    # Wide enough that the column which comes into view is no scene cut.
    grid = Grid(6, 4, 12)
    tokens, fresh = pan(grid)
    first = list(range(grid.per_frame))
    kept = kept_by("mc_evs", tokens, grid, grid.per_frame + len(fresh))
    assert kept == first + fresh
    seen = set(range(grid.tokens)) - set(first) - set(fresh)
    by_evs = kept_by("evs", tokens, grid, grid.per_frame + len(fresh))
    assert len(seen & set(by_evs)) > len(fresh) // 2
    without = kept_by("mc_evs", tokens, grid, grid.per_frame + len(fresh), radius=0)
    assert seen & set(without)


def test_mc_evs_keeps_what_moves_too_far():
    grid = Grid(2, 1, 8)
    row = noise(8, 32)
    tokens = torch.cat([row, row.roll(2, 0)])
    novelty = VISUAL.create("mc_evs").score(tokens, grid, Context())[8:]
    assert (novelty > 0.2).all()
    novelty = VISUAL.create("mc_evs", {"radius": 2}).score(tokens, grid, Context())[8:]
    assert (novelty[2:] < 1e-5).all()


def test_mc_evs_notices_slow_change():
    grid = Grid(12, 2, 2)
    frames = noise(4, 16).repeat(12, 1, 1)
    for t in range(12):
        # 0.05 radians per frame: neighbouring frames look the same, the first and the last do not.
        frames[t, 3] = 0
        frames[t, 3, :2] = torch.tensor([math.cos(0.05 * t), math.sin(0.05 * t)])
    novelty = VISUAL.create("mc_evs", {"radius": 0}).score(frames.view(48, 16), grid, Context()).view(12, 4)
    assert (novelty[1:, 3].diff() > 0).all()
    assert novelty[11, 3] > 0.14
    assert (novelty[1:, :3] < 1e-5).all()


def test_mc_evs_takes_a_cut_as_new_reference():
    grid = Grid(4, 3, 3)
    before, after = noise(9, 32), noise(9, 32, seed=9)
    tokens = torch.cat([before, before, after, after])
    kept = kept_by("mc_evs", tokens, grid, 20)
    # The floor costs one cell in each of the still frames.
    assert kept == [*range(9), 9, *range(18, 27), 27]


def test_mc_evs_replaces_similar_cells_too_at_a_cut():
    grid = Grid(3, 2, 2)
    before, after = torch.eye(8)[:4], torch.eye(8)[4:]
    after[0] = 0.9 * before[0] + math.sqrt(1 - 0.9**2) * after[0]
    novelty = VISUAL.create("mc_evs").score(torch.cat([before, after, after]), grid, Context()).view(3, 4)
    assert novelty[1].tolist() == pytest.approx([0.1, 1, 1, 1], abs=1e-5)
    assert novelty[2].tolist() == pytest.approx([0] * 4, abs=1e-5)


def test_mc_evs_spreads_what_the_floor_leaves_of_the_first_frame():
    tokens = noise(9, 32).repeat(6, 1)
    assert kept_by("mc_evs", tokens, Grid(6, 3, 3), 7) == [2, 6, 9, 18, 27, 36, 45]


def test_mc_evs_shares_a_small_budget_between_the_first_frame_and_news():
    grid = Grid(4, 4, 4)
    tokens, changed = noise(16, 32).repeat(4, 1), [20, 21, 36, 37, 52, 53]
    for i, cell in enumerate(changed):
        tokens[cell] = noise(32, seed=100 + i)
    kept = kept_by("mc_evs", tokens, grid, 12)
    assert set(changed) <= set(kept)
    assert kept[:6] == [1, 4, 6, 9, 12, 14]


def greedy(tokens: Tensor, count: int) -> list[int]:
    """Max-min selection as the paper states it, by brute force."""
    units = unit_rows(tokens)
    distance = (1 - units @ units.T).fill_diagonal_(torch.inf)
    picks = [int(distance.amin(1).argmax())]
    while len(picks) < count:
        reach = distance[picks].amin(0)
        reach[picks] = -1
        picks.append(int(reach.argmax()))
    return sorted(picks)


@pytest.mark.parametrize("count", [1, 2, 17, 60, 119])
def test_divprune_is_the_papers_greedy_on_one_segment(count: int):
    tokens = noise(120, 64)
    assert kept_by("divprune", tokens, Grid(1, 10, 12), count) == greedy(tokens, count)


@pytest.mark.parametrize("width", [64, 1024])
def test_divprune_covers_every_cluster(width: int):
    grid, clusters = Grid(1, 12, 12), 20
    label = torch.arange(grid.tokens).clamp_max(clusters - 1)
    tokens = 5 * noise(clusters, width)[label] + 0.1 * noise(grid.tokens, width, seed=1)
    assert len(label[kept_by("divprune", tokens, grid, clusters)].unique()) == clusters
    assert len(label[kept_by("random", tokens, grid, clusters)].unique()) < clusters // 2


def spread(tokens: Tensor, kept: list[int]) -> tuple[float, float]:
    """Smallest distance between kept cells, mean distance of all cells to the nearest kept one."""
    units = unit_rows(tokens)
    among = (units[kept] @ units[kept].T).fill_diagonal_(-1)
    return 1 - float(among.max()), float((1 - (units @ units[kept].T).amax(1)).mean())


@pytest.mark.parametrize("count", [40, 100, 180])
def test_divprune_over_a_whole_video_is_near_the_papers_greedy(count: int):
    """Eight frames that repeat their content: a choice per frame keeps the same content of each, and covers little."""
    grid = Grid(8, 10, 12)
    tokens = noise(200, 64)[torch.arange(grid.tokens) % 200] + 0.02 * noise(grid.tokens, 64, seed=1)
    apart, covered = spread(tokens, kept_by("divprune", tokens, grid, count))
    greedily_apart, greedily_covered = spread(tokens, greedy(tokens, count))
    assert apart > 0.9 * greedily_apart
    assert covered < 1.05 * greedily_covered
    by_frame = VISUAL.create("divprune").select(
        tokens, grid, count, Context(), [count // 8] * 7 + [count - count // 8 * 7]
    )
    assert spread(tokens, by_frame.tolist())[1] > 1.1 * covered


def test_divprune_over_a_whole_video_keeps_one_of_each_frame():
    grid = Grid(6, 10, 10)
    tokens = torch.cat([noise(500, 32), noise(1, 32, seed=1).expand(100, -1)])
    kept = torch.tensor(kept_by("divprune", tokens, grid, 30))
    assert set((kept // 100).tolist()) == set(range(6))
    assert ((kept // 100) == 5).sum() == 1


def test_divprune_gives_more_to_varied_segments():
    grid = Grid(2, 8, 8)
    tokens = torch.cat([noise(1, 32) + 0.01 * noise(64, 32, seed=1), noise(64, 32, seed=2)])
    kept = torch.tensor(kept_by("divprune", tokens, grid, 40))
    assert (kept >= 64).sum() == 39


def test_divprune_covers_bands_of_a_large_image():
    grid, clusters = Grid(1, 31, 33), 12
    label = torch.arange(grid.tokens) % clusters
    tokens = 5 * noise(clusters, 64)[label] + 0.1 * noise(grid.tokens, 64, seed=1)
    kept = torch.tensor(kept_by("divprune", tokens, grid, clusters))
    assert len(label[kept].unique()) == clusters
    kept = torch.tensor(kept_by("divprune", tokens, grid, 24 * clusters))
    for band in range(4):
        inside = kept[(kept >= band * 256) & (kept < (band + 1) * 256)]
        assert len(label[inside].unique()) == clusters


def screen(*, icon_at: int | None = None) -> Tensor:
    """A 4 x 6 screen: two icons that differ, one of them twice, on two plain colours with three channels."""
    pixels = torch.empty(24, 4, 3, 16)
    pixels[:] = torch.tensor([0.2, 0.5, 0.9])[:, None]
    pixels[12:] = torch.tensor([-0.7, 0.1, 0.4])[:, None]
    icons = noise(2, 4, 3, 16)
    pixels[3], pixels[8], pixels[15] = icons[0], icons[1], icons[0]
    if icon_at is not None:
        pixels[icon_at] = noise(4, 3, 16, seed=4)
    return pixels.view(24, -1)


def kept_cells(pixels: Tensor, count: int, earlier: list[Cells], **options: object) -> list[int]:
    strategy = VISUAL.create("gui_dedup", options)
    assert isinstance(strategy, PixelStrategy)
    return strategy.select_cells(cells_of(pixels, 4, 3), Grid(1, 4, 6), count, earlier).tolist()


def test_gui_dedup_ranks_new_texture_plain_colour_repeats():
    assert kept_cells(screen(), 2, []) == [3, 8]
    assert kept_cells(screen(), 4, []) == [0, 3, 8, 12]
    assert kept_cells(screen(), 5, []) == [0, 3, 8, 12, 15]
    assert kept_cells(screen(), 6, []) == [0, 1, 3, 8, 12, 15]


def test_gui_dedup_ranks_strong_texture_first():
    pixels = screen()
    pixels[8] *= 0.1
    assert kept_cells(pixels, 1, []) == [3]
    pixels[3] *= 0.01
    assert kept_cells(pixels, 1, []) != [3]


def test_gui_dedup_looks_across_items():
    before = [cells_of(screen(), 4, 3)]
    assert kept_cells(screen(icon_at=22), 1, before) == [22]
    assert kept_cells(screen(icon_at=22), 2, before) == [3, 22]
    # Without the earlier screen the icons are new again, and the plain colours follow them.
    assert kept_cells(screen(icon_at=22), 4, before, across=False) == [0, 3, 8, 22]
    assert kept_cells(screen(icon_at=22), 4, before) == [3, 8, 15, 22]


def test_gui_dedup_drops_what_an_earlier_frame_showed():
    strategy = VISUAL.create("gui_dedup")
    assert isinstance(strategy, PixelStrategy)
    frames = torch.cat([screen(), screen(icon_at=10)])
    kept = strategy.select_cells(cells_of(frames, 4, 3), Grid(2, 4, 6), 5, [])
    assert kept.tolist() == [0, 3, 8, 12, 34]


def test_pixel_exact_counts_contents():
    strategy = VISUAL.create("pixel_exact")
    assert isinstance(strategy, PixelStrategy)
    assert strategy.needed_cells(cells_of(screen(), 4, 3), Grid(1, 4, 6)).tolist() == [0, 3, 8, 12]
    # A frame that repeats another keeps its first cell, one with a new icon that alone.
    frames = torch.cat([screen(), screen(), screen(icon_at=10)])
    kept = strategy.needed_cells(cells_of(frames, 4, 3), Grid(3, 4, 6))
    assert kept.tolist() == [0, 3, 8, 12, 24, 58]
    # As many as that given as a number are the same, but for frames that would have none.
    assert strategy.select_cells(cells_of(screen(), 4, 3), Grid(1, 4, 6), 4, []).tolist() == [0, 3, 8, 12]


def test_recv_attn_keeps_what_is_looked_at():
    attention = torch.tensor([0.1, 0.5, 0.2, 0.9, 0.0, 0.3])
    strategy, grid, tokens = VISUAL.create("recv_attn"), Grid(1, 2, 3), noise(6, 4)
    assert strategy.select(tokens, grid, 2, Context(tower_attention=attention)).tolist() == [1, 3]
    with pytest.raises(ValueError, match="tower_attention"):
        strategy.select(tokens, grid, 2, Context())
    with pytest.raises(ValueError, match="5 values for 6 cells"):
        strategy.select(tokens, grid, 2, Context(tower_attention=attention[:5]))


def test_stts_keeps_the_highest_scores_and_a_cheap_first_frame():
    grid, scores = Grid(4, 1, 3), torch.tensor([0.1, 0.2, 0.3, 0.9, 0.4, 0.4, 0.8, 0.1, 0.4, 0.0, 0.7, 0.4])
    strategy, tokens, context = VISUAL.create("stts", {"spread": "free"}), noise(12, 4), Context(scores=scores)
    assert strategy.select(tokens, grid, 6, context).tolist() == [0, 1, 2, 3, 6, 10]
    # A first frame of more than half of K competes like the others; ties go to the lower index.
    assert strategy.select(tokens, grid, 4, context).tolist() == [3, 4, 6, 10]
    assert VISUAL.create("stts", {"spread": "free", "whole": 1}).select(tokens, grid, 4, context).tolist() == [
        0,
        1,
        2,
        3,
    ]
    assert VISUAL.create("stts", {"spread": "free", "whole": 0}).select(tokens, grid, 6, context).tolist() == [
        3,
        4,
        5,
        6,
        8,
        10,
    ]
    assert strategy.select(tokens, grid, 5, context, [1, 1, 2, 1]).tolist() == [2, 3, 6, 8, 10]
    # By default each frame gets its share, what is left over goes to the first ones; of too little some get one each.
    assert VISUAL.create("stts").select(tokens, grid, 6, context).tolist() == [1, 2, 3, 4, 6, 10]
    assert VISUAL.create("stts").select(tokens, grid, 3, context).tolist() == [2, 3, 6]
    # An image has no frame before it, and no first frame to protect.
    assert strategy.select(noise(3, 4), Grid(1, 1, 3), 2, Context(scores=scores[3:6])).tolist() == [0, 1]
    with pytest.raises(ValueError, match="scorer"):
        strategy.select(tokens, grid, 2, Context())
    with pytest.raises(ValueError, match="12 cells"):
        strategy.select(tokens, grid, 2, Context(scores=scores[:5]))
