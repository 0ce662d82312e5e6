"""What every strategy promises. A new strategy is one file in the catalogue and one row in ROWS."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid
from vllm_prune.shares import even_shares
from vllm_prune.visual.strategies._merging import MergingStrategy
from vllm_prune.visual.strategies._trained import TrainedStrategy
from vllm_prune.visual.strategies.base import Context, PixelStrategy, Strategy
from vllm_prune.visual.strategies.maths import cells_of

from .trained import frames_for, network_for


class Row(NamedTuple):
    name: str
    modalities: str
    options: dict[str, Any] = {}  # noqa: RUF012


ROWS = (
    Row("aot", "image video"),
    Row("aot", "image video", {"clip": 2, "fresh": 1}),
    Row("cacovid", "video"),
    Row("cacovid", "video", {"policy": 1.0, "most": 8.0}),
    Row("cdpruner", "image video"),
    Row("centerclip", "image video"),
    Row("divprune", "image video"),
    Row("elastic_pool", "image video"),
    Row("evs", "video"),
    Row("fastvid", "video"),
    Row("fastvid", "video", {"scenes": 2, "alike": -1, "density": 1, "every": 1, "least": 0}),
    Row("flashvlm", "image video"),
    Row("flashvlm", "image video", {"balance": 1}),
    Row("gui_dedup", "image video"),
    Row("gui_dedup", "image video", {"across": False, "flat": 0.5}),
    Row("holitom", "video"),
    Row("holitom", "video", {"alike": -1}),
    Row("idpruner", "image video"),
    Row("idpruner", "image video", {"importance": "selector", "balance": 1}),
    Row("mc_evs", "video"),
    Row("mc_evs", "video", {"radius": 3, "refresh": 0.5, "cut": 1}),
    Row("mc_evs", "video", {"radius": 0}),
    Row("none", "image video"),
    Row("pixel_exact", "image video"),
    Row("qtsplus", "image video"),
    Row("random", "image video"),
    Row("recv_attn", "image video"),
    Row("resize", "image video"),
    Row("slowfast", "video"),
    Row("stts", "image video"),
    Row("stts", "image video", {"spread": "free", "whole": 1.0}),
    Row("tempme", "image video"),
    Row("todre", "image video"),
    Row("todre", "image video", {"rule": "k_center"}),
    Row("trajectory", "video"),
    Row("uniform", "image video"),
    Row("vcast", "video"),
    Row("vidcom2", "image video"),
    Row("vision_selector", "image video"),
    Row("vqtoken", "video"),
    Row("vqtoken", "video", {"steps": 1}),
    Row("vqtoken_kmeans", "image video"),
    Row("vtc_cls", "image video"),
    Row("zoo", "image video"),
)
PRUNING = [row for row in ROWS if row.name not in ("none", "resize")]
"""Those that choose from an item's visual tokens."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CASES = settings(max_examples=25, deadline=None)


class Item(NamedTuple):
    grid: Grid
    tokens: Tensor
    pixels: Tensor
    context: Context

    def choose(self, row: Row, count: int, per_frame: list[int] | None = None) -> Tensor:
        strategy = VISUAL.create(row.name, row.options)
        if isinstance(strategy, PixelStrategy):
            earlier = [cells_of(self.pixels[:3])]
            return strategy.select_cells(cells_of(self.pixels), self.grid, count, earlier, per_frame)
        return strategy.select(self.tokens, self.grid, count, self.context_for(row.name), per_frame)

    def context_for(self, name: str) -> Context:
        fits = len(self.tokens) == self.grid.tokens and "unpooled" in VISUAL.strategy_class(name).needs
        unpooled = frames_for(self.grid, self.tokens) if fits else None
        return replace(self.context, network=network_for(name, self.tokens.shape[1]), unpooled=unpooled)


@st.composite
def items(draw: st.DrawFn, row: Row) -> Item:
    modalities = row.modalities
    frames = draw(st.integers(1, 6)) if "video" in modalities else 1
    grid = Grid(frames, draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    kind = draw(st.sampled_from(["random", "static", "constant", "zero", "few"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    trained = issubclass(VISUAL.strategy_class(row.name), TrainedStrategy)
    width = 32 if trained else draw(st.sampled_from([1, 6, 160]))
    tokens = content(torch.randn(grid.tokens, width, generator=generator), kind, grid).to(draw(st.sampled_from(DTYPES)))
    pixels = content(torch.rand(grid.tokens, 24, generator=generator), kind, grid)
    attention = torch.rand(grid.tokens, generator=generator)
    text = content(torch.randn(draw(st.integers(1, 9)), width, generator=generator), kind, Grid(1, 1, 1))
    return Item(grid, tokens, pixels, Context(draw(st.integers(0, 2**63 - 1)), attention, attention, attention, text))


def content(rows: Tensor, kind: str, grid: Grid) -> Tensor:
    if kind == "static":
        return rows[: grid.per_frame].repeat(grid.frames, 1)
    if kind == "constant":
        return rows[:1].repeat(len(rows), 1)
    if kind == "few":
        return rows[torch.arange(len(rows)) % 3 % len(rows)]
    return rows * 0 if kind == "zero" else rows


def test_every_strategy_has_a_row():
    assert {row.name for row in ROWS} == set(VISUAL.names())


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_entry(row: Row):
    cls = VISUAL.strategy_class(row.name)
    assert cls.name == row.name
    assert cls.modalities == set(row.modalities.split())
    assert cls.paper
    assert cls.summary
    assert "\n" not in cls.summary
    assert cls.__doc__
    schema = cls.Options.model_json_schema()
    assert schema["additionalProperties"] is False
    assert set(row.options) <= set(schema["properties"])
    assert VISUAL.create(row.name, row.options).options == cls.Options(**row.options)


@pytest.mark.parametrize("name", VISUAL.names())
def test_unknown_option_is_refused(name: str):
    with pytest.raises(ValidationError):
        VISUAL.create(name, {"no_such_option": 1})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mc_evs", {"radius": 4}),
        ("mc_evs", {"radius": -1}),
        ("mc_evs", {"radius": True}),
        ("mc_evs", {"radius": "1"}),
        ("mc_evs", {"refresh": float("nan")}),
        ("mc_evs", {"cut": float("inf")}),
        ("gui_dedup", {"across": 1}),
        ("gui_dedup", {"flat": -0.1}),
        ("stts", {"whole": 1.5}),
        ("stts", {"whole": -0.1}),
        ("stts", {"spread": "wide"}),
        ("idpruner", {"importance": "anything"}),
        ("idpruner", {"balance": 2}),
        ("todre", {"rule": "min"}),
        ("vcast", {"temperature": 0}),
        ("slowfast", {"slow": 0}),
        ("aot", {"fresh": 1.1}),
        ("flashvlm", {"balance": -0.1}),
        ("fastvid", {"scenes": 0}),
        ("holitom", {"alike": 2}),
        ("trajectory", {"radius": 4}),
        ("centerclip", {"frames": 0}),
        ("vqtoken_kmeans", {"steps": -1}),
        ("qtsplus", {"reencode": 1}),
        ("vqtoken", {"steps": 0}),
        ("vqtoken", {"steps": 51}),
        ("cacovid", {"policy": 1.5}),
        ("cacovid", {"most": 0.5}),
        ("vtc_cls", {"tower_blocks": 0}),
        ("recv_attn", {"skip_blocks": -1}),
        ("aot", {"tower_blocks": "all"}),
    ],
)
def test_bad_option_is_refused(name: str, options: dict[str, Any]):
    with pytest.raises(ValidationError):
        VISUAL.create(name, options)


def test_unknown_name():
    with pytest.raises(KeyError):
        VISUAL.create("no_such_strategy")


@pytest.mark.parametrize("row", PRUNING, ids=str)
@CASES
@given(data=st.data())
def test_exact_ascending_and_repeatable(row: Row, data: st.DataObject):
    item = data.draw(items(row))
    count = data.draw(st.integers(1, item.grid.tokens))
    kept = item.choose(row, count)
    assert kept.dtype == torch.int64
    assert kept.shape == (count,)
    assert (kept.diff() > 0).all()
    assert kept[0] >= 0
    assert kept[-1] < item.grid.tokens
    assert torch.equal(kept, item.choose(row, count))
    if VISUAL.strategy_class(row.name).floor and count >= item.grid.frames:
        assert len((kept // item.grid.per_frame).unique()) == item.grid.frames


@pytest.mark.slow
@pytest.mark.parametrize("row", PRUNING, ids=str)
@CASES
@given(data=st.data())
def test_counts_per_frame(row: Row, data: st.DataObject):
    item = data.draw(items(row))
    frame = st.integers(0, item.grid.per_frame)
    per_frame = data.draw(st.lists(frame, min_size=item.grid.frames, max_size=item.grid.frames).filter(any))
    kept = item.choose(row, sum(per_frame), per_frame)
    assert (kept.diff() > 0).all()
    assert torch.bincount(kept // item.grid.per_frame, minlength=item.grid.frames).tolist() == per_frame


@pytest.mark.slow
@pytest.mark.parametrize("row", PRUNING, ids=str)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_what_is_left_are_means(row: Row, data: st.DataObject):
    """Of a constant column nothing but the constant is left; kept cells are those of `select`; any width will do."""
    if issubclass(VISUAL.strategy_class(row.name), PixelStrategy):
        return
    item = data.draw(items(row))
    count = data.draw(st.integers(1, item.grid.tokens))
    per_frame = even_shares(count, item.grid.frames, item.grid.per_frame) if data.draw(st.booleans()) else None
    strategy = VISUAL.create(row.name, row.options)
    if strategy.rewrites:
        return
    reduction = strategy.reduce(item.tokens, item.grid, count, item.context_for(row.name), per_frame)
    assert torch.equal(reduction.kept, item.choose(row, count, per_frame))
    rows = torch.rand(item.grid.tokens, 3, generator=torch.Generator().manual_seed(1)).to(item.tokens.dtype)
    rows[:, 1] = 0.75
    left = reduction.rows(rows)
    assert left.shape == (count, 3)
    assert left.dtype == rows.dtype
    assert torch.equal(left, reduction.rows(rows))
    torch.testing.assert_close(left[:, 1], torch.full_like(left[:, 1], 0.75), rtol=1e-2, atol=1e-2)
    assert left.min() >= rows.min() - 1e-2
    assert left.max() <= rows.max() + 1e-2
    if count == item.grid.tokens or not isinstance(strategy, MergingStrategy):
        assert torch.equal(left, rows[reduction.kept])
    if per_frame is not None:
        # Merging stays inside frames: a column that tells them apart still does.
        frame = torch.arange(item.grid.tokens) // item.grid.per_frame
        mixed = reduction.rows(frame[:, None].float()).squeeze(1)
        torch.testing.assert_close(mixed, frame[reduction.kept].float())


@pytest.mark.parametrize("row", ROWS, ids=str)
@CASES
@given(data=st.data())
def test_keeping_all_is_identity(row: Row, data: st.DataObject):
    item = data.draw(items(row))
    assert torch.equal(item.choose(row, item.grid.tokens), torch.arange(item.grid.tokens))
    if not issubclass(VISUAL.strategy_class(row.name), PixelStrategy):
        context = item.context_for(row.name)
        reduction = VISUAL.create(row.name, row.options).reduce(item.tokens, item.grid, item.grid.tokens, context)
        assert torch.equal(reduction.rows(item.tokens), item.tokens)


@pytest.mark.parametrize("row", PRUNING, ids=str)
def test_batch_mates_change_nothing(row: Row):
    """Of items that lie behind each other in a batch, one strategy leaves what it leaves of each alone."""
    grids = (Grid(3, 4, 5), Grid(5, 7, 2), Grid(1, 6, 6)) if "video" in row.modalities else (Grid(1, 6, 10),) * 3
    sizes = [grid.tokens for grid in grids]
    generator = torch.Generator().manual_seed(4)
    tokens, pixels = torch.randn(sum(sizes), 32, generator=generator), torch.rand(sum(sizes), 24, generator=generator)
    attention = torch.rand(sum(sizes), generator=generator)
    batch = [
        Item(grid, part, seen, Context(seed, signal, signal, signal, part[:3]))
        for seed, (grid, part, seen, signal) in enumerate(
            zip(grids, tokens.split(sizes), pixels.split(sizes), attention.split(sizes), strict=True)
        )
    ]
    alone = [
        Item(one.grid, one.tokens.clone(), one.pixels.clone(), replace(one.context, text=one.tokens[:3].clone()))
        for one in batch
    ]
    wanted = [left_of(row, one, VISUAL.create(row.name, row.options)) for one in alone]
    strategy = VISUAL.create(row.name, row.options)
    for number in (0, 1, 2, 0):
        kept, rows = left_of(row, batch[number], strategy)
        assert torch.equal(kept, wanted[number][0])
        torch.testing.assert_close(rows, wanted[number][1], rtol=1e-5, atol=1e-5)


def left_of(row: Row, item: Item, strategy: Strategy) -> tuple[Tensor, Tensor]:
    """The cells that are kept of an item, a third of them, and the rows that take their place."""
    count = item.grid.tokens // 3
    if isinstance(strategy, PixelStrategy):
        kept = strategy.select_cells(cells_of(item.pixels), item.grid, count, [])
        return kept, item.tokens[kept]
    reduction = strategy.reduce(item.tokens, item.grid, count, item.context_for(row.name))
    return reduction.kept, reduction.rows(item.tokens)


@pytest.mark.parametrize("row", PRUNING, ids=str)
def test_neither_global_state_nor_memory_layout_matters(row: Row):
    grid = Grid(4, 5, 6)
    generator = torch.Generator().manual_seed(3)
    wide = torch.randn(grid.tokens, 192, generator=generator).bfloat16()
    pixels, attention = torch.rand(grid.tokens, 24, generator=generator), torch.rand(grid.tokens, generator=generator)
    context = Context(7, attention, attention, attention, wide[:5, :160].float())
    item = Item(grid, wide[:, :160].clone(), pixels, context)
    state, before = torch.get_rng_state(), item.tokens.clone()
    kept = item.choose(row, 40)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(item.tokens, before)
    assert torch.equal(item._replace(tokens=wide[:, :160]).choose(row, 40), kept)


def one_context() -> Context:
    return Context(1, torch.rand(24), torch.rand(24), torch.rand(24), torch.rand(3, 8))


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize(
    ("count", "per_frame"),
    [(0, None), (25, None), (4, [4, 0, 0]), (4, [2, 1]), (6, [7, -1]), (13, [13, 0])],
)
def test_impossible_counts_are_refused(row: Row, count: int, per_frame: list[int] | None):
    item = Item(
        Grid(2, 3, 4),
        torch.rand(24, 8),
        torch.rand(24, 24),
        Context(1, torch.rand(24), torch.rand(24), torch.rand(24), torch.rand(3, 8)),
    )
    with pytest.raises(ValueError):
        item.choose(row, count, per_frame)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_features_must_fit_the_grid(row: Row):
    item = Item(Grid(2, 3, 4), torch.rand(23, 8), torch.rand(23, 24), Context(1, torch.rand(23), torch.rand(23)))
    with pytest.raises(ValueError):
        item.choose(row, 5)
