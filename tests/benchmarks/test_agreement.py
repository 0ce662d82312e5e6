"""The comparison with the authors' code, on files of ours in their place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.agreement import kv
from benchmarks.agreement.__main__ import compare, jaccard
from benchmarks.agreement.authors import Source, blob_of, load
from benchmarks.agreement.cases import KINDS, Case, cases
from benchmarks.agreement.entries import ENTRIES, Entry, smallest_distance, volume
from benchmarks.machine import RESULTS
from benchmarks.report.agreement import agreement
from vllm_prune.catalogue import KV, VISUAL

THEIRS = """
import torch, no_such_package
import no_such_package.part as part
from .sibling import helper, decorate
from no_such_package.models import Base, decorator, CONSTANT

class Model(Base):
    @decorator
    def plain(self): return 1
    @decorator("text", of=2)
    def called(self): return 2
    @decorate
    def ours(self): return helper()

two = torch.ones(2)
def inside():
    import another_missing.thing as thing
    return thing.value
this is no Python
"""


def source(text: str, until: str | None = "this is") -> Source:
    return Source("Name", "0" * 40, "MIT", "code/file.py", blob_of(text.encode()), until)


def test_a_file_loads_without_the_packages_around_it(tmp_path: Path) -> None:
    file = tmp_path / "Name" / "code" / "file.py"
    file.parent.mkdir(parents=True)
    file.write_text(THEIRS)
    code = load(source(THEIRS).read(tmp_path), file, {"helper": lambda: 3, "decorate": lambda function: function})
    model = code["Model"]()
    assert [model.plain(), model.called(), model.ours()] == [1, 2, 3]
    assert code["two"].sum() == 2
    assert code["inside"]() is not None
    with pytest.raises(SyntaxError):
        load(source(THEIRS, None).read(tmp_path), file)


def test_another_version_of_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "Name" / "code" / "file.py"
    file.parent.mkdir(parents=True)
    file.write_text(THEIRS + "\n")
    with pytest.raises(ValueError, match=f"at {'0' * 40}; check that commit of Name out"):
        source(THEIRS).read(tmp_path)
    # Git's id of an empty file.
    assert blob_of(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


def test_cases_are_the_same_every_time_and_every_kind_differs() -> None:
    first, again = (list(cases([(3, 4, 4)], [8], [0.25], 2)) for _ in range(2))
    assert [case.kind for case in first] == [kind for kind in KINDS for _ in range(2)]
    assert all(torch.equal(one.tokens, two.tokens) for one, two in zip(first, again, strict=True))
    assert len({one.tokens.numpy().tobytes() for one in first}) == len(first)
    for case in first:
        assert case.count == 12
        assert case.tokens.shape == (48, 8)
        torch.testing.assert_close(case.attention.sum(1), torch.ones(3))
    repeats = next(case for case in first if case.kind == "repeats").frames
    assert torch.cosine_similarity(repeats[0], repeats[1], dim=-1).median() > 0.99


def test_both_sides_see_the_same_cache() -> None:
    for case in kv.kv_cases([2], [0.2], 2, 1):
        seen, (keys, queries, values) = case.view(), case.theirs()
        assert seen.items[1].tolist() == list(case.spans[1])
        assert seen.queries is not None
        assert torch.equal(seen.queries[-1], queries[0, :, -1])
        assert torch.equal(keys[0, 2], seen.keys[1])
        assert values[0, 3, 17, 0] == 17
        kept = kv.ours("snapkv", case)
        assert len(kept) == 2 * (case.count - kv.WINDOW)


def entry(theirs: Any, **fields: Any) -> Entry:
    drawn = lambda: cases([(1, 6, 6)], [8], [0.25], 1)  # noqa: E731
    return Entry((), theirs, drawn, None, "", **fields)


def test_agreement_is_one_with_itself_and_less_with_others() -> None:
    def same(_: Mapping[str, Any], case: Case) -> Tensor:
        return VISUAL.create("divprune").select(case.tokens, case.grid, case.count, case.context)

    itself = entry(same, objective=smallest_distance)
    result = compare("divprune", itself, {}, itself.exact())
    assert result == {"cases": 4, "identical": 4, "median": 1.0, "min": 1.0, "objective": 1.0}
    other = entry(lambda _, case: torch.arange(case.count), objective=smallest_distance)
    worse = compare("divprune", other, {}, other.exact())
    assert worse["identical"] == 0
    assert worse["median"] < 0.6
    assert worse["objective"] > 1
    assert jaccard(torch.tensor([1, 2, 3]), torch.tensor([3, 4])) == 0.25


def test_what_methods_maximise() -> None:
    case = next(iter(cases([(1, 4, 4)], [16], [0.25], 1)))
    square = replace(case, tokens=torch.eye(16), context=replace(case.context, text=torch.ones(2, 16)))
    assert smallest_distance(square, torch.tensor([0, 5])) == pytest.approx(1)
    twice = replace(square, tokens=torch.cat([torch.eye(8), torch.eye(8)]), context=case.context)
    twice = replace(twice, context=replace(case.context, text=torch.eye(8)[:3] + 0.1))
    assert volume(twice, torch.tensor([0, 8])) < volume(twice, torch.tensor([0, 1]))


def test_committed_figures_are_of_these_files() -> None:
    result = json.loads((RESULTS / "agreement.json").read_text())
    assert set(result["strategies"]) == set(ENTRIES)
    for name, row in result["strategies"].items():
        last = ENTRIES[name].sources[-1]
        assert (row["repository"], row["commit"], row["licence"]) == (last.repository, last.commit, last.licence)
        assert row["note"] == ENTRIES[name].note
        assert name in [*VISUAL.names(), *KV.names()]
        assert 0 <= row["exact"]["min"] <= row["exact"]["median"] <= 1
        assert 0 <= row["exact"]["identical"] <= row["exact"]["cases"]
        assert (row["usual"] is None) == (ENTRIES[name].usual is None)


def test_the_table_has_every_strategy(tmp_path: Path) -> None:
    text = agreement(RESULTS)
    assert all(f"| `{name}` |" in text for name in ENTRIES)
    assert agreement(tmp_path) == "Not measured yet."
