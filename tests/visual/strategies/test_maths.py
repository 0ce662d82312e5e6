from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_prune.shares import largest_remainder
from vllm_prune.visual.strategies import maths

CASES = settings(max_examples=200, deadline=None)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def shares(draw: st.DrawFn) -> tuple[int, list[int], list[int], int]:
    n = draw(st.integers(1, 8))
    weights = draw(st.lists(st.integers(0, 50), min_size=n, max_size=n))
    caps = draw(st.lists(st.integers(0, 40), min_size=n, max_size=n))
    floor = draw(st.integers(0, 4))
    total = draw(st.integers(sum(min(floor, cap) for cap in caps), sum(caps)))
    return total, weights, caps, floor


@CASES
@given(shares())
def test_shares_are_exact_and_bounded(case: tuple[int, list[int], list[int], int]):
    total, weights, caps, floor = case
    counts = largest_remainder(total, weights, caps, floor)
    assert sum(counts) == total
    assert all(min(floor, cap) <= n <= cap for n, cap in zip(counts, caps, strict=True))
    assert counts == largest_remainder(total, weights, caps, floor)


@CASES
@given(shares())
def test_shares_follow_weights_between_their_bounds(case: tuple[int, list[int], list[int], int]):
    total, weights, caps, floor = case
    counts = largest_remainder(total, weights, caps, floor)
    for i, (n, w) in enumerate(zip(counts, weights, strict=True)):
        for j, (m, v) in enumerate(zip(counts, weights, strict=True)):
            # If j could give a unit and i take one, i may not be more than a rounding short of j.
            if n < caps[i] and m > min(floor, caps[j]) and w and v:
                assert Fraction(n + 1, w) > Fraction(m - 1, v)


@CASES
@given(st.integers(0, 500), st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_unbounded_shares_are_within_one_of_proportional(total: int, weights: list[int]):
    counts = largest_remainder(total, weights, [total] * len(weights), 0)
    assert all(abs(Fraction(total * w, sum(weights)) - n) < 1 for n, w in zip(counts, weights, strict=True))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((10, [1, 1, 1], [9, 9, 9], 0), [4, 3, 3]),
        ((3, [5, 5, 5, 5], [1, 1, 1, 1], 0), [1, 1, 1, 0]),
        ((10, [8, 1, 1], [4, 9, 9], 0), [4, 3, 3]),
        ((10, [98, 1, 1], [10, 10, 10], 1), [8, 1, 1]),
        ((6, [0, 0, 0], [4, 4, 4], 0), [2, 2, 2]),
        ((6, [1, 0, 0], [3, 4, 4], 0), [3, 2, 1]),
        ((7, [3, 1], [7, 7], 0), [5, 2]),
        ((0, [3, 1], [7, 7], 0), [0, 0]),
    ],
)
def test_shares_by_hand(arguments: tuple[int, list[int], list[int], int], expected: list[int]):
    assert largest_remainder(*arguments) == expected


@pytest.mark.parametrize(
    "arguments", [(9, [1, 1], [4, 4], 0), (1, [1, 1], [4, 4], 1), (1, [1], [4, 4], 0), (2, [-1, 2], [4, 4], 0)]
)
def test_impossible_shares_are_refused(arguments: tuple[int, list[int], list[int], int]):
    with pytest.raises(ValueError):
        largest_remainder(*arguments)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_digests_are_equal_exactly_where_rows_are(dtype: torch.dtype, data: st.DataObject):
    rows, width = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    # Few rows to draw from, differing in one value only.
    pool = torch.randint(0, 255, (1, width), generator=generator).repeat(4, 1)
    pool[torch.arange(4), torch.randint(0, width, (4,), generator=generator)] += torch.arange(4)
    patches = pool[torch.randint(0, 4, (rows,), generator=generator)].to(dtype)
    cells = maths.cells_of(patches)
    assert cells.digest.dtype == torch.int64
    same = (patches[:, None].double() == patches[None].double()).all(-1)
    assert torch.equal(cells.digest[:, None] == cells.digest[None], same)
    expected = patches.double().std(1, correction=0).float()
    assert cells.texture.dtype == torch.float32
    torch.testing.assert_close(cells.texture, expected, rtol=1e-4, atol=1e-3)


def test_digest_notices_any_bit():
    pixels = noise(1, 300)
    bits = pixels.view(torch.int32).repeat(32, 1)
    bits[:, 137] ^= torch.tensor([1 << b for b in range(31)] + [-(1 << 31)], dtype=torch.int32)
    changed = torch.cat([pixels, bits.view(torch.float32)])
    assert len(maths.cells_of(changed).digest.unique()) == 33


@pytest.mark.slow
def test_digest_is_the_same_in_other_processes_and_chunks():
    pixels = torch.arange(5000, dtype=torch.uint8).view(10, 500)
    code = (
        "import torch; from vllm_prune.visual.strategies import maths;"
        "print(maths.cells_of(torch.arange(5000, dtype=torch.uint8).view(10, 500)).digest.tolist())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert maths.cells_of(pixels).digest.tolist() == json.loads(other.stdout)
    alone = [int(maths.cells_of(row[None]).digest) for row in pixels]
    assert alone == maths.cells_of(pixels).digest.tolist()


def test_texture_looks_inside_channels():
    flat = torch.tensor([0.9, -0.3, 0.1])[None, None, :, None].expand(1, 4, 3, 8)
    two = flat.clone()
    two[:, 2:] += 1
    pixels = torch.cat([flat, two]).reshape(2, -1)
    assert maths.cells_of(pixels, 4, 3).texture.tolist() == pytest.approx([0, 0.5], abs=1e-6)
    assert maths.cells_of(pixels).texture[0] > 0.4
    mixed = noise(5, 4 * 3 * 8)
    by_channel = mixed.view(5, 4, 3, 8).transpose(1, 2).reshape(5, 3, -1)
    expected = by_channel.var(-1, correction=0).mean(1).sqrt()
    torch.testing.assert_close(maths.cells_of(mixed, 4, 3).texture, expected)
    with pytest.raises(ValueError, match="not 4 patches"):
        maths.cells_of(torch.rand(2, 20), 4, 3)


def test_cells_of_wide_and_empty():
    assert maths.cells_of(torch.rand(2, 100_000)).digest.shape == (2,)
    assert maths.cells_of(torch.rand(0, 8)).digest.shape == (0,)


def test_cosine():
    left, right = noise(5, 9).bfloat16(), noise(5, 9, seed=1)
    expected = torch.cosine_similarity(left.float(), right, dim=-1)
    torch.testing.assert_close(maths.cosine(left, right), expected)
    assert maths.cosine(torch.zeros(1, 4), right[:1, :4]).tolist() == [0]


def test_sketch_keeps_cosines():
    rows = noise(300, 2048) + 2 * noise(1, 2048, seed=1)
    short = maths.sketch(rows.bfloat16())
    assert short.shape == (300, maths.SKETCH)
    assert short.dtype == torch.float32
    exact, approximate = maths.unit_rows(rows) @ maths.unit_rows(rows).T, short @ short.T
    assert (exact - approximate).abs().mean() < 0.05
    assert torch.equal(maths.sketch(rows[:3]), maths.sketch(rows[:3]))
    assert torch.equal(maths.sketch(rows[:, :100]), maths.unit_rows(rows[:, :100]))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 3), st.integers(0, 999))
def test_match_is_the_best_neighbour(rows: int, cols: int, radius: int, seed: int):
    frame, reference = (
        maths.unit_rows(noise(rows, cols, 8, seed=seed)),
        maths.unit_rows(noise(rows, cols, 8, seed=seed + 1)),
    )
    best, index = maths.match(frame, reference, radius)
    for y in range(rows):
        for x in range(cols):
            near = [
                (float(frame[y, x] @ reference[v, u]), v * cols + u)
                for v in range(max(0, y - radius), min(rows, y + radius + 1))
                for u in range(max(0, x - radius), min(cols, x + radius + 1))
            ]
            value, place = max(near)
            assert float(best[y, x]) == pytest.approx(value, abs=2e-6)
            assert int(index[y, x]) == place


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 12), st.data())
def test_farthest_points(segments: int, n: int, data: st.DataObject):
    steps = data.draw(st.integers(1, n))
    lengths = data.draw(st.lists(st.integers(1, n), min_size=segments, max_size=segments))
    units = maths.unit_rows(noise(segments, n, 5, seed=data.draw(st.integers(0, 99))))
    valid = torch.arange(n) < torch.tensor(lengths)[:, None]
    gains = maths.farthest_points(units, steps, valid)
    assert (gains > -torch.inf).sum(1).tolist() == [min(steps, length) for length in lengths]
    assert (gains[~valid] == -torch.inf).all()
    for segment, length in enumerate(lengths):
        alone = maths.farthest_points(units[segment : segment + 1, :length], min(steps, length))
        torch.testing.assert_close(gains[segment, :length], alone[0], rtol=0, atol=2e-6)


def test_farthest_points_ties_go_to_the_lower_index():
    units = torch.ones(1, 5, 1)
    gains = maths.farthest_points(units, 3)
    assert gains.tolist() == [[2, 0, 0, -torch.inf, -torch.inf]]


def test_evenly_spaced():
    assert maths.evenly_spaced(10, 3).tolist() == [1, 5, 8]
    assert maths.evenly_spaced(10, 0).tolist() == []
    assert maths.evenly_spaced(4, 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("groups", [1, 40, 600])
def test_drawn_centers_are_of_different_groups(groups: int):
    # Of 600, four are drawn at once.
    centers = noise(groups, 32).repeat(8, 1)
    units = maths.unit_rows(centers + 0.01 * noise(8 * groups, 32, seed=1))
    places = maths.drawn_centers(units, groups, seed=3)
    assert torch.equal(places, maths.drawn_centers(units, groups, seed=3))
    assert len(places) == groups
    # By chance alone 63% of many groups have a center.
    assert len(set((places % groups).tolist())) > (0.97 if groups < 600 else 0.93) * groups
