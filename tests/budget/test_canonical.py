from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_prune.budget.allocate import ItemBudget, allocate, plan
from vllm_prune.budget.canonical import Part, VisualSpec, canonical, canonical_kv, kv_specs
from vllm_prune.budget.errors import BudgetError
from vllm_prune.budget.fields import Choice, KvField, parse_pruning, parse_visual
from vllm_prune.catalogue import KV
from vllm_prune.grid import Grid

RATIOS = st.floats(min_value=1e-4, max_value=0.9999)


def spec_of(**field: object) -> VisualSpec:
    return canonical(parse_visual(field))


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        ({"visual": {"keep": 0}}, "pruning.visual.keep"),
        ({"visual": {"keep": -0.5}}, "pruning.visual.keep"),
        ({"visual": {"keep": 1.01}}, "pruning.visual.keep"),
        ({"visual": {"keep": float("nan")}}, "pruning.visual.keep"),
        ({"visual": {"keep": float("inf")}}, "pruning.visual.keep"),
        ({"visual": {"keep": True}}, "pruning.visual.keep"),
        ({"visual": {"keep": "0.5"}}, "pruning.visual.keep"),
        ({"visual": {"keep": [0.5]}}, "pruning.visual.keep"),
        ({"visual": {"max_tokens": 0}}, "pruning.visual.max_tokens"),
        ({"visual": {"max_tokens": 2.5}}, "pruning.visual.max_tokens"),
        ({"visual": {"max_tokens": True}}, "pruning.visual.max_tokens"),
        ({"visual": {"max_tokens": 1 << 40}}, "pruning.visual.max_tokens"),
        ({"visual": {"keep": 0.5, "max_tokens": 5}}, "pruning.visual.keep"),
        ({"visual": {"strategy": 7, "keep": 0.5}}, "pruning.visual.strategy"),
        ({"visual": {"keep": 0.5, "unknown": 1}}, "pruning.visual.unknown"),
        ({"visual": {"image": {"keep": 2}}}, "pruning.visual.image.keep"),
        ({"visual": {"video": {"keep": 0.5, "max_tokens": 1}}}, "pruning.visual.video.keep"),
        ({"visual": {"image": {"image": {}}}}, "pruning.visual.image.image"),
        ({"visual": "divprune"}, "pruning.visual"),
        ({"visuals": {}}, "pruning.visuals"),
        ({"kv": {"keep": 3}}, "pruning.kv.keep"),
        ([], "pruning"),
        (3, "pruning"),
    ],
)
def test_bad_input_names_the_field(raw: object, param: str) -> None:
    with pytest.raises(BudgetError) as caught:
        parse_pruning(raw)
    assert caught.value.param == param
    assert str(caught.value)


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        ({}, "pruning.visual.keep"),
        ({"strategy": "uniform"}, "pruning.visual.keep"),
        ({"strategy": "magic", "keep": 0.5}, "pruning.visual.strategy"),
        ({"strategy": "none", "keep": 0.5}, "pruning.visual.strategy"),
        ({"strategy": "uniform", "keep": 0.5, "options": {"stride": 3}}, "pruning.visual.options.stride"),
        ({"keep": 0.5, "image": {"strategy": "magic"}}, "pruning.visual.image.strategy"),
    ],
)
def test_budgets_without_meaning_are_refused(raw: dict[str, object], param: str) -> None:
    with pytest.raises(BudgetError) as caught:
        canonical(parse_visual(raw))
    assert caught.value.param == param


def test_equal_budgets_have_one_form() -> None:
    spellings = [{"keep": 0.5}, {"keep": 0.50}, {"keep": 5e-1, "options": None}, {"keep": 0.5, "options": {}}]
    forms = {json.dumps(spec_of(**raw, strategy="uniform").wire()) for raw in spellings}
    assert len(forms) == 1
    assert spec_of(keep=0.5, strategy="uniform") != spec_of(keep=0.25, strategy="uniform")


def test_keep_one_and_none_are_the_same_as_no_budget() -> None:
    assert spec_of(keep=1) == spec_of(keep=1.0, strategy="uniform") == spec_of(strategy="none") == VisualSpec()


def test_wire_form_round_trips() -> None:
    spec = spec_of(max_tokens=40, strategy="uniform", video={"keep": 0.25, "strategy": "uniform"})
    assert VisualSpec.from_wire(json.loads(json.dumps(spec.wire()))) == spec


def test_modality_overrides() -> None:
    spec = spec_of(keep=0.5, strategy="uniform", image={"keep": 0.1}, video=None)
    assert spec.video is None
    assert spec.image is not None
    assert spec.image.keep == "0.1"
    only_image = spec_of(image={"keep": 0.1, "strategy": "uniform"})
    assert only_image.video is None


@pytest.mark.parametrize(("keep", "tokens", "kept"), [(0.29, 100, 29), (0.1, 30, 3), (0.5, 63, 31), (0.01, 20, 1)])
def test_ratio_counts_are_decimal(keep: float, tokens: int, kept: int) -> None:
    part = spec_of(keep=keep, strategy="uniform").image
    assert part is not None
    assert plan(Grid(1, 1, tokens), ItemBudget("uniform", "{}", part.keep, None)) == kept


@given(keep=RATIOS, tokens=st.integers(1, 100_000))
def test_plan_is_a_floor_and_never_zero(keep: float, tokens: int) -> None:
    part = spec_of(keep=keep, strategy="uniform").image
    assert part is not None
    count = plan(Grid(1, 1, tokens), ItemBudget("uniform", "{}", part.keep, None))
    assert count == max(1, int(Decimal(repr(keep)) * tokens))
    assert 1 <= count <= tokens


@given(
    images=st.lists(st.integers(1, 500), max_size=4),
    videos=st.lists(st.integers(1, 2000), max_size=3),
    total=st.integers(1, 4000),
)
def test_max_tokens_is_shared_exactly(images: list[int], videos: list[int], total: int) -> None:
    spec = spec_of(max_tokens=total, strategy="uniform")
    sizes = {"image": images, "video": videos}
    items = [*images, *videos]
    if not items:
        return
    if total < len(items):
        with pytest.raises(BudgetError):
            allocate(spec, sizes)  # type: ignore[arg-type]
        return
    grants = allocate(spec, sizes)  # type: ignore[arg-type]
    flat = [*grants["image"], *grants["video"]]
    counts = [size if grant is None else plan(Grid(1, 1, size), grant) for size, grant in zip(items, flat, strict=True)]
    assert sum(counts) == min(total, sum(items))
    assert all(1 <= count <= size for count, size in zip(counts, items, strict=True))


@given(sizes=st.lists(st.integers(1, 500), min_size=1, max_size=5), limit=st.integers(5, 600))
def test_the_operators_cap_holds(sizes: list[int], limit: int) -> None:
    grants = allocate(VisualSpec(limit=limit, capped_image=Part("uniform")), {"image": sizes})["image"]
    kept = sum(size if g is None else plan(Grid(1, 1, size), g) for size, g in zip(sizes, grants, strict=True))
    assert kept == min(limit, sum(sizes))
    assert any(g and g.capped for g in grants) == (sum(sizes) > limit)


def test_a_video_strategy_does_not_take_images() -> None:
    with pytest.raises(BudgetError) as caught:
        allocate(spec_of(keep=0.5, strategy="evs"), {"image": [10]})
    assert caught.value.param == "pruning.visual.strategy"
    allowed = allocate(spec_of(keep=0.5, strategy="evs", image=None), {"image": [10], "video": [10]})
    assert allowed["image"] == [None]


def test_keys_of_items_differ_exactly_when_budgets_do() -> None:
    grants = [ItemBudget("uniform", "{}", keep, count) for keep, count in [("0.5", None), ("0.25", None), (None, 5)]]
    assert len({grant.key() for grant in grants}) == 3
    assert grants[0].key() == ItemBudget("uniform", "{}", "0.5", None, capped=True).key()


def test_the_cap_prunes_only_what_its_strategy_can() -> None:
    spec = VisualSpec(limit=5, capped_image=Part("evs"), capped_video=Part("evs"))
    assert allocate(spec, {"image": [5]})["image"] == [None]
    assert allocate(spec, {"image": [], "video": [9]})["video"] == [ItemBudget("evs", "{}", None, 5, True)]
    with pytest.raises(BudgetError, match="no strategy that is allowed here prunes images") as caught:
        allocate(spec, {"image": [6]})
    assert caught.value.param == "pruning.visual.image"


def test_a_strict_cap_refuses() -> None:
    with pytest.raises(BudgetError, match="over the operator's limit of 5"):
        allocate(VisualSpec(limit=5, strict=True), {"image": [6]})


def test_a_modality_with_tokens_of_its_own_does_not_share() -> None:
    spec = spec_of(strategy="uniform", max_tokens=6, image={"max_tokens": 4})
    kept = allocate(spec, {"image": [10, 10], "video": [10]})
    assert [item.count for item in kept["image"] if item] == [2, 2]
    assert [item.count for item in kept["video"] if item] == [6]


def test_what_has_to_be_counted() -> None:
    assert not spec_of(keep=0.5).counts
    assert not VisualSpec().counts
    for counted in (spec_of(max_tokens=5), spec_of(keep=0.5, image={"max_tokens": 5}), VisualSpec(limit=5)):
        assert counted.counts


def test_a_field_is_taken_for_its_wire_form() -> None:
    assert VisualSpec.from_wire({"keep": 0.5, "strategy": "uniform"}) == spec_of(keep=0.5, strategy="uniform")
    with pytest.raises(BudgetError):
        VisualSpec.from_wire({"image": None, "no_such_field": 1})


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"strategy": "", "keep": 0.5}, "pruning.visual.strategy"),
        ({"keep": 0.5, "image": {"strategy": ""}}, "pruning.visual.image.strategy"),
        ({"keep": 0.5, "strategy": "", "video": {"strategy": "uniform"}}, "pruning.visual.strategy"),
    ],
)
def test_an_empty_name_is_no_strategy(field: dict[str, object], param: str) -> None:
    with pytest.raises(BudgetError, match="unknown strategy ''") as caught:
        spec_of(**field)
    assert caught.value.param == param


def test_an_empty_name_is_no_kv_strategy() -> None:
    with pytest.raises(BudgetError, match="unknown KV strategy ''"):
        canonical_kv(KvField(strategy="", keep=0.5))


@pytest.mark.parametrize("name", [name for name in KV.names() if KV.strategy_class(name).once])
def test_a_buffer_is_refused_where_the_cache_is_compacted_once(name: str) -> None:
    assert canonical_kv(KvField(strategy=name, keep=0.5)) is not None
    with pytest.raises(BudgetError, match="leave buffer out") as caught:
        canonical_kv(KvField(strategy=name, keep=0.5, buffer=16))
    assert caught.value.param == "pruning.kv.buffer"


def test_strategies_of_requests_that_name_none() -> None:
    spec = canonical(parse_visual({"keep": 0.5}), {"image": (Choice("uniform"),), "video": (Choice("evs"),)})
    assert [part and part.strategy for part in (spec.image, spec.video)] == ["uniform", "evs"]
    kv = canonical_kv(KvField(keep=0.5), (Choice("streaming"),))
    assert kv is not None
    assert kv.strategy == "streaming"


IN_ORDER = (Choice("evs"), Choice("divprune", {"where": "tower"}), Choice("uniform"))


@pytest.mark.parametrize(
    ("options", "strategy", "chosen"),
    [
        (None, "evs", {}),
        ({}, "evs", {}),
        ({"after": 2}, "divprune", {"after": 2, "where": "tower"}),
        # What the request says comes before what the choice says.
        ({"where": "embed"}, "divprune", {"after": None, "where": "embed"}),
    ],
)
def test_without_a_strategy_the_first_that_takes_the_options(options: Any, strategy: str, chosen: Any) -> None:
    field = parse_visual({"keep": 0.5, "image": None, "options": options})
    part = canonical(field, {"image": IN_ORDER, "video": IN_ORDER}).video
    assert part is not None
    assert (part.strategy, json.loads(part.options)) == (strategy, chosen)
    named = canonical(parse_visual({"keep": 0.5, "strategy": strategy, "options": chosen})).video
    assert part == named


def test_options_that_no_choice_takes() -> None:
    for options, words in (({"x": 1}, "options.x"), ({"after": -1}, "options.after")):
        field = parse_visual({"keep": 0.5, "image": None, "options": options})
        with pytest.raises(BudgetError, match=words):
            canonical(field, {"image": IN_ORDER, "video": IN_ORDER[:2]})


def test_kv_budgets_without_a_strategy_by_every_choice_that_takes_the_options() -> None:
    choices = (Choice("gui_kv"), Choice("snapkv"), Choice("streaming"))
    assert [spec.strategy for spec in kv_specs(KvField(keep=0.5), choices)] == ["gui_kv", "snapkv", "streaming"]
    maximum = kv_specs(KvField(keep=0.5, window=9, options={"mode": "max"}), choices)
    assert maximum == kv_specs(KvField(strategy="snapkv", keep=0.5, window=9, options={"mode": "max"}))
    assert kv_specs(KvField(keep=1.0), choices) == ()
    assert canonical_kv(KvField(keep=0.5), choices) == canonical_kv(KvField(strategy="gui_kv", keep=0.5))
    with pytest.raises(BudgetError, match="streaming"):
        kv_specs(KvField(keep=0.5, options={"x": 1}), choices)


def test_a_budget_may_leave_the_place_to_the_server() -> None:
    part = spec_of(keep=0.5, strategy="divprune", options={"where": "auto"}).video
    assert part is not None
    assert part.with_options(where="tower") == spec_of(keep=0.5, strategy="divprune", options={"where": "tower"}).video
    with pytest.raises(BudgetError, match="'embed', 'tower' or 'auto'"):
        spec_of(keep=0.5, strategy="divprune", options={"where": "anywhere"})


def test_every_part_is_mapped_and_travels() -> None:
    parts = {name: Part("uniform", keep=f"0.{n}") for n, name in enumerate(("image", "video", "capped_image"), 1)}
    spec = VisualSpec(**parts, limit=5)
    halved = spec.mapped(lambda part: replace(part, keep="0.5"))
    assert {part and part.keep for part in (halved.image, halved.video, halved.capped_image)} == {"0.5"}
    assert (halved.capped_video, halved.limit) == (None, 5)
    assert VisualSpec.from_wire(json.loads(json.dumps(spec.wire()))) == spec


def test_return_kept_is_no_part_of_the_budget() -> None:
    field = {"keep": 0.5, "strategy": "uniform"}
    plain, asking = (canonical(parse_visual({**field, "return_kept": value})) for value in (False, True))
    assert plain.wire() == asking.wire() == canonical(parse_visual(field)).wire()
    with pytest.raises(BudgetError) as refused:
        parse_visual({"keep": 0.5, "image": {"keep": 0.2, "return_kept": True}})
    assert refused.value.param == "pruning.visual.image.return_kept"


def test_without_a_server_return_kept_is_refused() -> None:
    assert VisualSpec.from_wire({"keep": 0.5, "return_kept": False}) == VisualSpec.from_wire({"keep": 0.5})
    with pytest.raises(BudgetError) as refused:
        VisualSpec.from_wire({"keep": 0.5, "return_kept": True})
    assert refused.value.param == "pruning.visual.return_kept"


def test_defaults_take_the_options_of_the_one_before() -> None:
    """`where` came with the default of images when that was `divprune`, and still is taken without a name."""
    unnamed = spec_of(keep=0.5, options={"where": "tower", "after": 2})
    assert unnamed == spec_of(keep=0.5, strategy="divprune", options={"where": "tower", "after": 2})
    assert spec_of(keep=0.5).image == spec_of(keep=0.5, strategy="vidcom2").image
