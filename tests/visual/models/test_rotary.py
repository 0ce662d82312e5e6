"""Several positions for a token by one row of vLLM's own rotary tables, against rotations in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests import emulated_graphs
from vllm_prune.visual.models.member_positions import MemberPositions
from vllm_prune.visual.models.positions import StepOffsets
from vllm_prune.visual.models.rotary import axes_of, make_room, obstacle, parts_of, positions_in

HEAD, POSITIONS, CAPACITY, THETA = 64, 100, 40, 10_000.0
SECTIONS = [6, 13, 13]
FORMS: dict[str, dict[str, Any]] = {
    "parts": {"mrope_section": SECTIONS},
    "interleaved": {"mrope_section": [12, 10, 10], "mrope_interleaved": True},
    "partial": {"mrope_section": [4, 2, 2], "partial_rotary_factor": 0.25, "mrope_interleaved": True},
    "one row": {},
    "one row of three": {"mrope_section": SECTIONS},
}


@pytest.fixture(autouse=True, scope="module")
def _config() -> Iterator[None]:
    """What vLLM's layers ask for when they are made."""
    from vllm.config import VllmConfig, set_current_vllm_config

    with set_current_vllm_config(VllmConfig()):
        yield


class Language(nn.Module):
    """A language model of two layers, which share what they share in vLLM."""

    def __init__(self, *ropes: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"rotary_emb": rope}) for rope in ropes)


def made(form: str, **changes: Any) -> Any:
    """A rotary embedding of vLLM's that no other test has."""
    from vllm.model_executor.layers import rotary_embedding

    rotary_embedding._ROPE_DICT.clear()
    parameters = {"rope_type": "default", "rope_theta": THETA, **FORMS.get(form, {}), **changes}
    return rotary_embedding.get_rope(
        HEAD, POSITIONS, rope_parameters=parameters, dtype=torch.float32, mrope_positions_factor=1
    )


def rotated(rope: Any, positions: Tensor, rows: Tensor) -> Tensor:
    """[n, HEAD] as vLLM rotates one head of it."""
    query, _ = rope.forward_native(positions, rows.clone(), rows.clone())
    return query


def by_formula(rows: Tensor, coordinates: Tensor, rotary: int, theta: float = THETA) -> Tensor:
    """[n, HEAD] in float64, with the position of every frequency, [n, rotary / 2]."""
    half = rotary // 2
    angles = coordinates.double() * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    first, second, rest = rows.double().split([half, half, HEAD - rotary], dim=1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=1)


def axis_by_hand(form: str) -> list[int]:
    """The axis of each frequency, written out."""
    if form == "interleaved":
        return [0, 1, 2] * 10 + [0, 0]
    if form == "partial":
        return [0, 1, 2, 0, 1, 2, 0, 0]
    return [0] * 6 + [1] * 13 + [2] * 13 if form == "parts" else [0] * 32


@pytest.mark.parametrize("form", FORMS)
def test_the_axis_of_a_frequency_is_the_one_that_vllm_rotates_by(form: str) -> None:
    rope, one_row = made(form), form.startswith("one row")
    axes = axes_of(rope, one_row)
    assert axes == axis_by_hand(form)
    positions = torch.tensor([[3], [20], [71]])
    rows = torch.randn(1, HEAD, generator=torch.Generator().manual_seed(1))
    found = rotated(rope, positions[0] if one_row else positions, rows)
    wanted = by_formula(rows, positions[axes].t(), 2 * len(axes))
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3), parts=st.integers(1, 16), seed=st.integers(0, 99))
def test_frequencies_of_an_axis_are_divided_in_order(sizes: list[int], parts: int, seed: int) -> None:
    axes = np.random.default_rng(seed).permutation([axis for axis, size in enumerate(sizes) for _ in range(size)])
    found = np.array(parts_of(axes.tolist(), parts))
    for axis, size in enumerate(sizes):
        inside = found[axes == axis]
        assert (np.diff(inside) >= 0).all()
        counts = np.bincount(inside, minlength=parts)
        assert counts.tolist() == [size // parts + (part < size % parts) for part in range(parts)]


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[tuple[int, int, int]], int]:
    """Items of a step: text before, tokens, P (0 for an unpruned one, 1 for one that does not merge); a seed."""
    items = draw(
        st.lists(
            st.tuples(st.integers(0, 3), st.integers(1, 4), st.sampled_from([0, 1, 2, 3, 8, 16])),
            min_size=1,
            max_size=4,
        )
    )
    return items, draw(st.integers(0, 2**31))


class Step:
    """Tokens of a step, with what each is to be rotated by."""

    def __init__(self, items: Sequence[tuple[int, int, int]], seed: int, axes: Sequence[int], one_row: bool) -> None:
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape: int, high: int = 30) -> Tensor:
            values = torch.randint(0, high, shape, generator=generator)
            return values[:1].expand_as(values).clone() if one_row else values

        self.relative, self.members, self.lengths = list[Tensor | None](), list[Tensor | None](), list[int]()
        mask, origins, tables = list[bool](), [], []
        for text, count, parts in items:
            before = drawn(3, text + count)
            mask += [False] * text + [True] * count
            own = drawn(3, count) if parts else None
            members = drawn(3, count, parts) if parts > 1 else None
            self.relative.append(own)
            self.members.append(members)
            self.lengths.append(count)
            origins.append(before)
            table = before[list(axes)].clone()
            if members is not None:
                part = parts_of(axes, parts)
                table[:, text:] += torch.stack([members[axis, :, part[i]] for i, axis in enumerate(axes)])
            elif own is not None:
                table[:, text:] += own[list(axes)]
            tables.append(table)
        self.mask = torch.tensor(mask, dtype=torch.bool)
        self.origins = torch.cat([torch.zeros(3, 0, dtype=torch.long), *origins], dim=1)
        self.table = torch.cat([torch.zeros(len(axes), 0, dtype=torch.long), *tables], dim=1).t()

    def placed(self, offsets: StepOffsets, members: MemberPositions) -> tuple[Tensor, Tensor]:
        """What the model is told, and the runner's positions behind that, as an adapter makes them."""
        offsets.clear()
        members.clear()
        offsets.write(self.relative, self.lengths, self.mask)
        members.write(self.members, self.lengths, self.mask)
        positions = self.origins.clone()
        members.compose(positions)
        offsets.apply(positions)
        return members.hand_on(positions), positions


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=20, deadline=None)
@given(first=steps(), second=steps())
def test_tokens_are_rotated_by_each_of_their_positions(form: str, first: Any, second: Any) -> None:
    rope, one_row = made(form), form.startswith("one row")
    before = rope.cos_sin_cache.clone()
    axes = axes_of(rope, one_row)
    offsets, members = StepOffsets(CAPACITY), MemberPositions(Language(rope), CAPACITY, one_row)
    assert members.obstacle is None
    for items, seed in (first, second):
        step = Step(items, seed, axes, one_row)
        handed, positions = step.placed(offsets, members)
        rows = torch.randn(len(step.mask), HEAD, generator=torch.Generator().manual_seed(seed))
        found = rotated(rope, handed[0] if one_row else handed, rows)
        torch.testing.assert_close(found.double(), by_formula(rows, step.table, 2 * len(axes)), rtol=0, atol=1e-5)
        several = torch.zeros_like(step.mask)
        several[step.mask] = torch.cat(
            [torch.zeros(0, dtype=torch.bool)]
            + [torch.full((n,), m is not None) for m, n in zip(step.members, step.lengths, strict=True)]
        )
        assert torch.equal(handed[:, ~several], positions[:, ~several])
        assert (handed[:, several] >= POSITIONS).all()
        assert (positions < POSITIONS).all()
    assert torch.equal(rope.cos_sin_cache[:POSITIONS], before)


@pytest.mark.parametrize("form", FORMS)
def test_a_token_that_is_its_only_member_is_rotated_as_ever(form: str) -> None:
    rope, one_row = made(form), form.startswith("one row")
    members, offsets = MemberPositions(Language(rope), CAPACITY, one_row), StepOffsets(CAPACITY)
    step = Step([(2, 9, 1), (1, 5, 0)], 3, axes_of(rope, one_row), one_row)
    own = step.relative[0]
    assert own is not None
    step.members = [own[..., None].expand(-1, -1, 8), None]
    handed, positions = step.placed(offsets, members)
    assert (handed != positions).sum() == 3 * 9
    rows = torch.randn(17, HEAD, generator=torch.Generator().manual_seed(5))
    pick = (lambda one: one[0]) if one_row else (lambda one: one)
    assert torch.equal(rotated(rope, pick(handed), rows), rotated(rope, pick(positions), rows))


def test_rotary_embeddings_of_several_lengths_have_the_same_rows() -> None:
    """As with windows of attention that have frequencies of their own."""
    near, far = made("one row"), made("one row", rope_theta=100.0)
    far.cos_sin_cache = far.cos_sin_cache[:60]
    members = MemberPositions(Language(near, far, near), CAPACITY, True)
    places = torch.randint(0, 50, (1, 6, 4), generator=torch.Generator().manual_seed(2)).expand(3, -1, -1)
    members.write([places], [6], torch.ones(6, dtype=torch.bool))
    positions = torch.full((3, 6), 7)
    members.compose(positions)
    handed = members.hand_on(positions)[0]
    assert handed.tolist() == [*range(POSITIONS, POSITIONS + 6)]
    assert (positions_in(near), positions_in(far)) == (POSITIONS, 60)
    rows = torch.randn(6, HEAD, generator=torch.Generator().manual_seed(5))
    table = 7 + places[0].repeat_interleave(8, 1)
    for rope, theta in ((near, THETA), (far, 100.0)):
        found = rotated(rope, handed, rows)
        torch.testing.assert_close(found.double(), by_formula(rows, table, HEAD, theta), rtol=0, atol=1e-5)


def test_room_is_made_once() -> None:
    rope = made("parts")
    table = rope.cos_sin_cache.clone()
    make_room(rope, POSITIONS + 5)
    first = rope.cos_sin_cache
    make_room(rope, POSITIONS + 5)
    assert rope.cos_sin_cache is first
    make_room(rope, POSITIONS + 9)
    assert (len(rope.cos_sin_cache), positions_in(rope)) == (POSITIONS + 9, POSITIONS)
    assert torch.equal(rope.cos_sin_cache[:POSITIONS], table)
    assert "cos_sin_cache" not in Language(rope).state_dict()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_type": "deepseek_yarn", "factor": 2.0, "original_max_position_embeddings": 50}, "DeepseekScaling"),
        ({"rope_type": "openpangu", "mrope_section": SECTIONS, "mrope_interleaved": True}, "MRotaryEmbeddingInter"),
        (
            {"rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": [1.0] * 32,
             "original_max_position_embeddings": 50},
            "Phi3LongRoPE",
        ),
    ],
)  # fmt: skip
def test_other_kinds_of_rotary_embedding_are_left_alone(
    changes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.model_executor.layers.rotary_embedding import phi3_long_rope_scaled_rope as longrope

    served = SimpleNamespace(model_config=SimpleNamespace(max_model_len=40))
    monkeypatch.setattr(longrope, "get_current_vllm_config", lambda: served)
    rope = made("", **changes)
    members = MemberPositions(Language(made("parts"), rope), CAPACITY)
    assert members.obstacle is not None
    assert words in members.obstacle
    positions = torch.zeros(3, 2, dtype=torch.int64)
    members.compose(positions)
    assert members.hand_on(positions) is positions
    members.write([None], [2], torch.ones(2, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="positions: 1"):
        members.write([positions[..., None]], [2], torch.ones(2, dtype=torch.bool))


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 50},
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 50},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 50, "mrope_section": SECTIONS},
    ],
)  # fmt: skip
def test_scaled_tables_are_looked_up_the_same_way(changes: dict[str, Any]) -> None:
    assert obstacle(Language(made("", **changes)), False) is None


def test_what_else_stands_in_the_way() -> None:
    assert "no rotary embedding" in str(obstacle(nn.Linear(1, 1), False))
    language = Language(made("parts"))
    assert "MLA" in str(obstacle(language, True))
    assert obstacle(language, False) is None
    language.layers[0].do_llama_4_scaling = False  # type: ignore[assignment]
    assert obstacle(language, False) is None
    language.layers[0].do_llama_4_scaling = True  # type: ignore[assignment]
    assert "scaled by their position" in str(obstacle(language, False))


def test_replays_compose_the_rows_of_the_step_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated_graphs.install(monkeypatch)
    rope = made("parts")
    members, offsets, graph = MemberPositions(Language(rope), CAPACITY), StepOffsets(CAPACITY), emulated_graphs.Graph()
    runner = torch.zeros(3, CAPACITY, dtype=torch.int64)
    with emulated_graphs.graph(graph):
        members.compose(runner[:, :7])
        offsets.apply(runner[:, :7])
        handed = members.hand_on(runner[:, :7])
    assert handed.stride() == runner.stride()
    rows = torch.randn(7, HEAD, generator=torch.Generator().manual_seed(5))
    for seed, parts in ((1, 8), (2, 3), (3, 1), (4, 8)):
        step = Step([(3, 4, parts)], seed, axes_of(rope, False), False)
        offsets.clear()
        members.clear()
        offsets.write(step.relative, step.lengths, step.mask)
        members.write(step.members, step.lengths, step.mask)
        runner[:, :7] = step.origins
        graph.replay()
        found = rotated(rope, handed, rows)
        torch.testing.assert_close(found.double(), by_formula(rows, step.table, HEAD), rtol=0, atol=1e-5)
        assert (runner[:, :7] < POSITIONS).all()


def test_captured_pieces_are_handed_one_memory_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    members, runner = MemberPositions(Language(made("parts")), CAPACITY), torch.zeros(3, CAPACITY, dtype=torch.int64)
    assert members.hand_on(runner[:, :4]).data_ptr() == runner.data_ptr()
    members.pieces = True
    runner += 5
    handed = members.hand_on(runner[:, :4])
    address = handed.data_ptr()
    assert address != runner.data_ptr()
    assert torch.equal(handed, runner[:, :4])
    members.write([torch.ones(3, 2, 2, dtype=torch.int64)], [2], torch.tensor([False, True, True]))
    members.compose(runner[:, :3])
    with_members = members.hand_on(runner[:, :3])
    assert with_members.data_ptr() == address
    assert with_members[:, 1:].tolist() == [[POSITIONS + 1, POSITIONS + 2]] * 3
    members.clear()
    assert members.hand_on(runner[:, :6]).data_ptr() == address
    # The whole model is captured: a graph of its own reads what it was given.
    monkeypatch.setattr("vllm_prune.vllm_compat.cuda_graphs.stream_capturing", lambda: True)
    monkeypatch.setattr("vllm_prune.vllm_compat.cuda_graphs._plain", True)
    assert members.hand_on(runner[:, :6]).data_ptr() == runner.data_ptr()
