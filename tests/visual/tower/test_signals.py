from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vllm_prune.catalogue import VISUAL
from vllm_prune.config.worker_facts import WorkerFacts
from vllm_prune.grid import Grid
from vllm_prune.visual.item_plan import ItemPlan
from vllm_prune.visual.scorers.vision_selector import SELECTOR
from vllm_prune.visual.tower.received_attention import Listener
from vllm_prune.visual.tower.select import Left, choose_cells, kept_rows
from vllm_prune.visual.tower.signals import Captures, ItemSource, attended, context_of, needed

GRID, FEATURES = Grid(1, 2, 3), torch.randn(6, 4)


def plan(strategy: str, count: int = 2) -> ItemPlan:
    return ItemPlan(strategy, "{}", count, 7)


def test_only_what_is_needed_is_given() -> None:
    attention, scores = torch.rand(1, 6), torch.rand(6)
    source = ItemSource(GRID, FEATURES, {"tower_attention": attention, "scorer": scores})
    given = context_of(plan("recv_attn"), {"tower_attention"}, source).tower_attention
    assert given is not None
    assert torch.equal(given, attention[0])
    assert context_of(plan("stts"), {"scorer"}, source).scores is scores
    for needs in (frozenset[Any](), frozenset[Any]({"pixels"})):
        context = context_of(plan("uniform"), needs, source)
        assert (context.seed, context.tower_attention, context.scores) == (7, None, None)


def test_needs_of_a_batch_are_joined() -> None:
    assert needed([None, plan("uniform")]) == frozenset()
    assert needed([plan("recv_attn"), None, plan("stts")]) == {"tower_attention", "scorer"}
    assert needed([]) == frozenset()


def test_the_selector_comes_from_the_facts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = {"q_proj.weight": (2, 4), "q_proj.bias": (2,), "k_proj.weight": (2, 4), "k_proj.bias": (2,)}
    save_file({name: torch.randn(*shape) for name, shape in names.items()}, tmp_path / "weights.safetensors")
    facts = WorkerFacts(selector=str(tmp_path / "weights.safetensors"))
    scores = SELECTOR.load(tmp_path / "weights.safetensors").score(FEATURES, [GRID])
    kept = choose_cells(plan("vision_selector"), ItemSource(GRID, FEATURES, {}, facts))
    assert kept.tolist() == scores.topk(2).indices.sort().values.tolist()
    with pytest.raises(ValueError, match="selector"):
        choose_cells(plan("vision_selector"), ItemSource(GRID, FEATURES))


def test_rows_of_kept_cells_come_with_what_is_merged_into_them() -> None:
    rows = torch.rand(6, 5)
    plain, kept, members = kept_rows(plan("uniform"), ItemSource(GRID, FEATURES), rows)
    assert torch.equal(plain, rows[kept])
    assert members is None
    merged, kept, members = kept_rows(plan("vqtoken_kmeans"), ItemSource(GRID, FEATURES), rows)
    assert members is None
    assert merged.shape == (2, 5)
    assert not torch.equal(merged, rows[kept])
    assert torch.equal(kept, choose_cells(plan("vqtoken_kmeans"), ItemSource(GRID, FEATURES)))


def test_members_come_where_they_are_wanted_and_something_is_merged() -> None:
    def members(strategy: str, count: int = 2, positions: int = 3) -> Tensor | None:
        wanted = ItemPlan(strategy, f'{{"positions":{positions}}}', count, 7)
        return kept_rows(wanted, ItemSource(GRID, FEATURES), FEATURES).members

    assert members("vqtoken_kmeans", positions=1) is None
    # All of them are kept.
    assert members("vqtoken_kmeans", count=6) is None
    several = members("vqtoken_kmeans")
    assert several is not None
    assert several.shape == (2, 3)
    left = Left(FEATURES[:2], torch.tensor([4, 1]), several)
    relative = torch.arange(18).view(3, 6)
    cells, places = left.placed(relative)
    assert cells.tolist() == [[4, 1], [10, 7], [16, 13]]
    assert places is not None
    for axis in range(3):
        assert torch.equal(places[axis], 6 * axis + several)


def test_options_decide_which_signals_are_captured() -> None:
    def by(importance: str) -> ItemPlan:
        return ItemPlan("idpruner", f'{{"importance":"{importance}"}}', 2, 7)

    assert needed([by("norm")]) == frozenset()
    assert needed([by("norm"), by("attention")]) == {"tower_attention"}


def test_attention_of_chosen_blocks_is_averaged() -> None:
    """Rows are blocks from the last on; an item gets its own mean whatever else its batch has captured."""
    blocks = torch.rand(4, 6)
    source = ItemSource(GRID, FEATURES, {"tower_attention": blocks})

    def of(strategy: str, **options: int | None) -> ItemPlan:
        return ItemPlan(strategy, json.dumps(options), 2, 7)

    cases = [
        (of("recv_attn"), blocks[0], 1),
        (of("recv_attn", tower_blocks=2, skip_blocks=1), blocks[1:3].mean(0), 3),
        (of("recv_attn", tower_blocks=None, skip_blocks=2), blocks[2:].mean(0), None),
        (of("vtc_cls", tower_blocks=None), blocks.mean(0), None),
    ]
    for one, expected, last in cases:
        given = context_of(one, {"tower_attention"}, source).tower_attention
        assert given is not None
        assert torch.equal(given, expected)
        assert attended([None, one]) == last
    assert attended([case[0] for case in cases[:2]]) == 3
    assert attended([case[0] for case in cases]) is None


def test_vtc_cls_looks_at_every_block_unless_told_otherwise() -> None:
    """One cell stands out in each block, another one in the mean of all."""
    blocks = torch.tensor([[9.0, 1, 1, 5, 1, 1], [1, 9, 1, 5, 1, 1], [1, 1, 9, 5, 1, 1]])
    source = ItemSource(GRID, FEATURES, {"tower_attention": blocks})
    for name, count, wanted in (
        ("recv_attn", 1, [0]),
        ("vtc_cls", 1, [3]),
        ("recv_attn", 2, [0, 3]),
        ("vtc_cls", 2, [0, 3]),
    ):
        options = VISUAL.create(name).options.model_dump_json()
        assert choose_cells(ItemPlan(name, options, count, 7), source).tolist() == wanted


class Sums(Listener):
    """Captures the sums of the rows that go into a module."""

    def _listen(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._received[module].append(args[0].sum(1))

    def per_item(self, sizes: list[int]) -> list[Tensor | None]:
        return list(self._joined()[0].split(sizes))


def test_captures_listen_while_they_are_open() -> None:
    module, rows = nn.Identity(), torch.rand(5, 3)
    with Captures({"tower_attention": Sums(module)}) as captures:
        module(rows)
    module(rows)
    first, second = captures.per_item(2, [2, 3])
    assert torch.equal(first["tower_attention"], rows[:2].sum(1))  # type: ignore[arg-type]
    assert torch.equal(second["tower_attention"], rows[2:].sum(1))  # type: ignore[arg-type]
