"""What the server concludes from what its workers answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_prune.budget.errors import kv_finding
from vllm_prune.grid import bitmap
from vllm_prune.support import self_check
from vllm_prune.support.self_check import EXTENSION, WorkerInspection, inspect_workers, kv_findings, visual_findings
from vllm_prune.support.workers import workers_of
from vllm_prune.visual.tower.kept_store import KEPT

from .test_kv import config


class Engine:
    """The parts of vLLM's engine client that are looked at."""

    def __init__(self, extension: str = EXTENSION, adapted: bool = True) -> None:
        self.vllm_config = config()
        self.vllm_config.parallel_config.worker_extension_cls = extension
        self.vllm_config.lora_config = self.vllm_config.ec_transfer_config = None
        self.vllm_config.compilation_config = SimpleNamespace()
        mm = SimpleNamespace(is_multimodal_pruning_enabled=lambda: False, mm_encoder_tp_mode="weights")
        self.model_config = self.vllm_config.model_config
        self.model_config.multimodal_config = mm
        self.model_config.architectures = ["SomeForConditionalGeneration"]
        self.renderer = SimpleNamespace(mm_processor=SimpleNamespace(vllm_prune_adapter=adapted))
        self.calls: list[str] = []

    async def collective_rpc(self, method: str, timeout: float) -> list[dict[str, Any]]:
        self.calls.append(method)
        return [report()]


def report(adapter: bool = True, *findings: Any, offers: tuple[str, ...] = ("queries", "values")) -> dict[str, Any]:
    wire = {"findings": [finding.wire() for finding in findings], "offers": list(offers)}
    return {"adapter": adapter, "model": "vllm.Some", "kv": wire}


async def test_workers_with_the_extension_are_asked() -> None:
    engine = Engine()
    assert await inspect_workers(engine) == [report()]
    assert engine.calls == ["vllm_prune_inspect"]
    other = Engine("somebody.Else")
    assert await inspect_workers(other) == []
    assert other.calls == []


def test_everything_in_place() -> None:
    engine = Engine()
    assert visual_findings(engine, [report()]) == []
    assert kv_findings(engine, [report()]) == []


@pytest.mark.parametrize(
    ("adapted", "reports", "cause", "word"),
    [
        (False, [report()], "adapter", "SomeForConditionalGeneration has none; supported: "),
        (True, [], "extension", EXTENSION),
        (True, [report(), report(adapter=False)], "adapter", "worker 1 runs vllm.Some"),
    ],
)
def test_why_visual_budgets_are_refused(adapted: bool, reports: list[Any], cause: str, word: str) -> None:
    [finding] = visual_findings(Engine(adapted=adapted), reports)
    assert (finding.cause, finding.param) == (cause, "pruning.visual")
    assert word in finding.text


def test_an_engine_remembers_what_its_workers_have_said() -> None:
    engine, other = Engine(), Engine()
    finding = kv_finding("alibi", "layers.0")
    assert kv_findings(engine, [report(True, finding), report(True, finding, offers=("values",))]) == [finding]
    assert kv_findings(other, []) == [kv_finding("worker", "it cannot be asked; start with vllm-prune serve")]
    workers = workers_of(engine.vllm_config)
    assert workers is not None
    assert workers.offers == {"values"}
    assert workers.one_position is None
    assert workers_of(Engine().vllm_config) is None


def test_a_worker_says_which_classes_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        vllm_prune_adapter = True

    class Worker(WorkerInspection):
        model_runner = SimpleNamespace(get_model=Model, kv_compactor=None)

    answer = Worker().vllm_prune_inspect()
    assert answer["adapter"] is True
    assert answer["one_position"] is None
    Model.one_position = "it is odd"  # type: ignore[attr-defined]
    assert Worker().vllm_prune_inspect()["one_position"] == "it is odd"
    assert answer["worker"].endswith("Worker")
    assert answer["runner"] == "types.SimpleNamespace"
    assert answer["model"].endswith("Model")
    [wire] = answer["kv"]["findings"]
    assert (wire["cause"], answer["kv"]["offers"]) == ("worker", [])
    assert self_check.EXTENSION.rpartition(".")[2] == WorkerInspection.__name__


def test_a_worker_reports_the_items_that_it_remembers() -> None:
    KEPT.remember("self-check", torch.tensor([0, 2]), 4)
    assert WorkerInspection().vllm_prune_kept(["self-check", "never seen"]) == [bitmap([0, 2], 4), None]
