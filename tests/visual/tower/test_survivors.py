"""Groups of whole frames, and metadata put together from theirs."""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_prune.visual.tower.survivors import Rows, frame_groups, joined, pack_offsets, part, runs

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 4).map(lambda n: 2 * n), st.integers(1, 4).map(lambda n: 2 * n))


@settings(max_examples=200, deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=5), st.integers(1, 300))
def test_groups_are_whole_frames_within_the_bound(items: list[tuple[int, int, int]], most: int) -> None:
    groups = frame_groups(items, most)
    frames = [(h, w) for t, h, w in items for _ in range(t)]
    assert [(h, w) for group in groups for t, h, w in group.thw for _ in range(t)] == frames
    last = 0
    for group in groups:
        assert group.first == last
        last = group.last
        assert group.last - group.first == sum(t * h * w for t, h, w in group.thw)
        single = len(group.thw) == 1 and group.thw[0][0] == 1
        assert single or group.last - group.first <= most
    assert last == sum(t * h * w for t, h, w in items)
    # No more groups than needed: a group and the first frame of the next one do not fit together.
    for one, other in pairwise(groups):
        assert one.last - one.first + other.thw[0][1] * other.thw[0][2] > most


def test_joined_metadata_counts_on() -> None:
    groups = frame_groups([[2, 2, 2], [1, 2, 4]], 8)
    assert [group.thw for group in groups] == [[[2, 2, 2]], [[1, 2, 4]]]
    metas = [
        {"cu_seqlens": torch.tensor([0, 4, 8]), "max_seqlen": torch.tensor(4), "rotary_pos_emb_cos": torch.zeros(8, 2),
         "reverse_indices": torch.tensor([1, 0]), "sequence_lengths": None},
        {"cu_seqlens": torch.tensor([0, 8]), "max_seqlen": torch.tensor(8), "rotary_pos_emb_cos": torch.ones(8, 2),
         "reverse_indices": torch.tensor([1, 0]), "sequence_lengths": None},
    ]  # fmt: skip
    found = joined(metas, groups, 4)
    assert found["cu_seqlens"].tolist() == [0, 4, 8, 16]
    assert found["max_seqlen"].item() == 8
    assert found["rotary_pos_emb_cos"].sum() == 16
    assert found["reverse_indices"].tolist() == [1, 0, 3, 2]
    assert "sequence_lengths" not in found


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(0, 30))
def test_runs_are_whole_sequences_within_the_bound(lengths: list[int], most: int) -> None:
    offsets = [0, *accumulate(lengths)]
    found = runs(offsets, most)
    assert [place for run in found for place in range(*run)] == list(range(offsets[-1]))
    for first, last in found:
        assert {first, last} <= set(offsets)
        assert last - first <= most or not any(first < end < last for end in offsets)
    for (first, _), (_, last) in pairwise(found):
        assert any(last >= end > most + first for end in offsets)


def test_a_part_of_the_metadata_starts_at_zero() -> None:
    meta = {"cu_seqlens": torch.tensor([0, 4, 4, 9]), "cu_window_seqlens": torch.tensor([0, 2, 4, 4, 4, 7, 9]),
            "max_seqlen": torch.tensor(5), "rotary_pos_emb_cos": torch.arange(9)}  # fmt: skip
    found = part(meta, 4, 9)
    assert found["cu_seqlens"].tolist() == [0, 0, 5]
    assert found["cu_window_seqlens"].tolist() == [0, 0, 0, 3, 5]
    assert found["max_seqlen"].item() == 5
    assert found["rotary_pos_emb_cos"].tolist() == [4, 5, 6, 7, 8]


def test_rows_of_one_group_are_not_copied() -> None:
    [whole] = frame_groups([[2, 2, 2]], 8)
    rows, given = Rows(8), torch.rand(8, 3)
    rows.put(whole, given)
    assert rows.take() is given
    for group in frame_groups([[2, 2, 2]], 4):
        rows.put(group, given[group.first : group.last])
    assert torch.equal(rows.take(), given)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 5))
def test_empty_sequences_go_behind_the_others(lengths: list[int], spare: int) -> None:
    offsets, filled = torch.tensor([0, *accumulate(lengths)]), [length for length in lengths if length]
    memory = torch.full((len(filled) + 1 + spare,), 99)
    pack_offsets(memory, offsets)
    assert memory.tolist() == [0, *accumulate(filled), *[sum(lengths)] * spare]
