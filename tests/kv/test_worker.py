"""Under plain vLLM a worker that cannot serve every KV strategy refuses to start; under our launcher it reports."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_prune.budget.errors import Finding, kv_finding
from vllm_prune.kv import worker


def worker_of(monkeypatch: pytest.MonkeyPatch, additional: Any, **runner: Any) -> worker.CompactingWorker:
    """A worker whose caches are about to be there."""
    monkeypatch.setattr(worker.PlatformWorker, "initialize_from_config", lambda self, *args: "ready")
    made = object.__new__(worker.CompactingWorker)
    made.model_runner = SimpleNamespace(**runner)
    made.vllm_config = SimpleNamespace(additional_config=additional)
    return made


def whole() -> dict[str, Any]:
    return {
        "kv_findings": [],
        "kv_compactor": SimpleNamespace(saliency=object(), rotation=object(), prompt_queries=None, gates=None),
    }


def test_a_worker_that_can_do_everything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_of(monkeypatch, {}, **whole()).initialize_from_config() == "ready"


@pytest.mark.parametrize(
    ("runner", "word"),
    [
        ({"kv_findings": [kv_finding("alibi", "layers.0")], "kv_compactor": None}, "ALiBi: layers.0"),
        (
            {
                "kv_findings": [],
                "kv_compactor": SimpleNamespace(saliency=None, rotation=object(), prompt_queries=None, gates=None),
            },
            "gives no saliency",
        ),
        ({}, "a worker other than vllm-prune's"),
    ],
)
def test_one_that_cannot_starts_under_the_launcher_only(
    monkeypatch: pytest.MonkeyPatch, runner: dict[str, Any], word: str
) -> None:
    monkeypatch.setenv("VLLM_PRUNE_LAUNCHED", "1")
    for additional in ({}, {"vllm_prune": {"max_window": 8}}, object()):
        with pytest.raises(RuntimeError, match=word):
            worker_of(monkeypatch, additional, **runner).initialize_from_config()
    launched = worker_of(monkeypatch, {"vllm_prune": {"launched": True}}, **runner)
    assert launched.initialize_from_config() == "ready"


@pytest.mark.parametrize(
    ("facts", "signal"), [({"prompt_queries": 1}, "moments"), ({"weights": {"dyvte": "x"}}, "gates")]
)
def test_what_is_configured_has_to_be_there(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], signal: str
) -> None:
    with pytest.raises(RuntimeError, match=f"the model gives no {signal}"):
        worker_of(monkeypatch, {"vllm_prune": facts}, **whole()).initialize_from_config()
    able = whole()
    able["kv_compactor"].prompt_queries = able["kv_compactor"].gates = object()
    assert worker_of(monkeypatch, {"vllm_prune": facts}, **able).initialize_from_config() == "ready"


def test_a_report_is_plain_data() -> None:
    finding = kv_finding("layout", "unknown")
    report = worker.inspect(SimpleNamespace(kv_findings=[finding], kv_compactor=None))
    assert report == {"findings": [finding.wire()], "offers": []}
    assert Finding.of(report["findings"][0]) == finding
    everything = worker.inspect(SimpleNamespace(**whole()))
    assert everything == {"findings": [], "offers": ["coordinates", "queries", "rotation", "saliency", "values"]}
