"""`stts` on a server whose model has no scorer."""

from __future__ import annotations

from .guarded import ALPHA, SMALL, Guarded


def test_a_model_without_a_scorer(guarded: Guarded) -> None:
    answer = guarded.chat(ALPHA, [SMALL], pruning={"visual": {"keep": 0.5, "strategy": "stts"}})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "pruning.visual.strategy"
    assert "stts/scorer.safetensors" in answer.json()["error"]["message"]
    assert guarded.chat(ALPHA, [SMALL], pruning={"visual": {"keep": 0.5, "strategy": "divprune"}}).status_code == 200
