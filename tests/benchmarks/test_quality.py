"""Results of a few strategies take the place of what was committed of them, and of nothing else."""

from __future__ import annotations

from typing import Any, cast

import pytest

from benchmarks.quality import arms, chosen, replaced, strategies
from vllm_prune.catalogue import VISUAL
from vllm_prune.sweep.client import Client


def row(part: str, strategy: str, right: int, n: int = 4, group: str = "all") -> dict[str, Any]:
    return {"part": part, "strategy": strategy, "keep": 0.5, "group": group, "n": n, "right": right}


COMMITTED = {
    "command": "first",
    "rows": [row("none", "unpruned", 4), row("visual", "a", 1), row("visual", "b", 2), row("kv", "a", 3)],
}


def test_only_what_is_named_is_measured() -> None:
    assert chosen(["a", "b"], "kv", ()) == ["a", "b"]
    assert chosen(["a", "b"], "kv", ["kv:b", "visual:a"]) == ["b"]
    assert chosen(["a", "b"], "video", ["kv:b", "visual:a"]) == []


class Catalogue:
    """What a server says of its strategies."""

    def get(self, path: str) -> dict[str, Any]:
        return {"data": [one for one in VISUAL.entries() if one["name"] in ("none", "random", "aot")]}


def test_variants_are_of_strategies_that_have_the_option() -> None:
    names = strategies(cast(Client, Catalogue()), "image")
    assert sorted(names) == ["aot", "aot@members", "random", "random@tower"]
    options = {
        arm.strategy: arm.pruning["visual"]["options"] for arm in arms(names, [0.25]) if "@" in arm.strategy
    }  # fmt: skip
    assert options == {"aot@members": {"positions": 8}, "random@tower": {"where": "tower"}}


def test_rows_are_replaced_and_added() -> None:
    measured = [row("none", "unpruned", 0), row("kv", "random", 0), row("kv", "a", 0), row("kv", "c", 1)]
    measured[3]["part"] = "visual"
    after = replaced(COMMITTED, measured, ["kv:a", "visual:c"], "second")
    rights = {(one["part"], one["strategy"]): one["right"] for one in after["rows"]}
    assert rights == {
        ("none", "unpruned"): 4, ("visual", "a"): 1, ("visual", "b"): 2, ("visual", "c"): 1, ("kv", "a"): 0,
    }  # fmt: skip
    assert after["command"] == "first"
    assert after["later"] == {"kv:a": "second", "visual:c": "second"}
    again = replaced(after, [row("kv", "a", 2)], ["kv:a"], "third")
    assert again["later"] == {"kv:a": "third", "visual:c": "second"}


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows of kv:b"):
        replaced(COMMITTED, [row("kv", "a", 0)], ["kv:a", "kv:b"], "second")
    with pytest.raises(ValueError, match="5 samples of kv all"):
        replaced(COMMITTED, [row("kv", "a", 0, n=5)], ["kv:a"], "second")
