"""How a mix is written, and how it is shared out."""

from __future__ import annotations

from collections import Counter

import pytest

from vllm_prune.bench.mix import MixError, assign, parse_mix


def test_every_form() -> None:
    fields = {budget.name: budget.pruning for budget in parse_mix("off, 0.5,gui_dedup:0.25,kv:0.2,kv:snapkv:0.1,@fast")}
    assert fields == {
        "off": {"visual": None, "kv": None},
        "0.5": {"visual": {"keep": 0.5}, "kv": None},
        "gui_dedup:0.25": {"visual": {"strategy": "gui_dedup", "keep": 0.25}, "kv": None},
        "kv:0.2": {"visual": None, "kv": {"keep": 0.2}},
        "kv:snapkv:0.1": {"visual": None, "kv": {"strategy": "snapkv", "keep": 0.1}},
        "@fast": "fast",
    }


@pytest.mark.parametrize("text", ["", " , ", "half", "divprune", "0", "1.5", "divprune:nan", "kv:", "@"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(MixError):
        parse_mix(text)


def test_shares_are_equal_and_the_order_is_the_seeds() -> None:
    mix = parse_mix("off,off,0.5")
    chosen = [budget.name for budget in assign(mix, 30, seed=1)]
    assert Counter(chosen) == {"off": 20, "0.5": 10}
    assert chosen == [budget.name for budget in assign(mix, 30, seed=1)]
    assert chosen != [budget.name for budget in assign(mix, 30, seed=2)]
    assert chosen != ["off", "off", "0.5"] * 10
