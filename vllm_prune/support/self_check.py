"""The self-check at start: a worker extension that reports which of our classes run, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..budget.errors import Finding, visual_finding
from . import kv, visual
from .workers import KvWorkers, remember_workers

EXTENSION = "vllm_prune.support.self_check.WorkerInspection"
"""Value of `--worker-extension-cls`."""


class WorkerInspection:
    """Mixed into vLLM's worker by `--worker-extension-cls`; adds read-only calls."""

    model_runner: Any

    def vllm_prune_inspect(self) -> dict[str, Any]:
        """Names of the classes in use, whether the model is one of our adapters, and what it can do."""
        from ..kv.worker import inspect as inspect_kv

        model = self.model_runner.get_model()
        return {
            "worker": type(self).__qualname__,
            "runner": f"{type(self.model_runner).__module__}.{type(self.model_runner).__qualname__}",
            "model": f"{type(model).__module__}.{type(model).__qualname__}",
            "kv": inspect_kv(self.model_runner),
            "adapter": bool(getattr(model, "vllm_prune_adapter", False)),
            "one_position": getattr(model, "one_position", None),
        }

    def vllm_prune_kept(self, keys: Sequence[str]) -> list[str | None]:
        """Kept visual tokens of recent items, as `grid.bitmap` has them; None for items that are not remembered.

        Args:
            keys: `ItemPlan.key` of each item.
        """
        from ..visual.tower.kept_store import KEPT

        return [KEPT.bitmap(key) for key in keys]


async def inspect_workers(engine_client: Any) -> list[dict[str, Any]]:
    """The report of every worker; empty where the workers lack the extension."""
    if engine_client.vllm_config.parallel_config.worker_extension_cls != EXTENSION:
        return []
    return list(await engine_client.collective_rpc("vllm_prune_inspect", timeout=60))


def visual_findings(engine_client: Any, workers: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Why no visual budget is honoured; empty when they are."""
    findings = visual.config_refusals(engine_client.vllm_config)
    if not visual.has_adapted_processor(engine_client.renderer):
        return [*findings, visual.unsupported_model(engine_client.model_config)]
    if not workers:
        findings.append(visual_finding("extension", f"{EXTENSION} is not installed; start with vllm-prune serve"))
    for rank, report in enumerate(workers):
        if not report["adapter"]:
            detail = f"worker {rank} runs {report['model']}, not our adapter; see its log for an import error"
            findings.append(visual_finding("adapter", detail))
    return findings


def kv_findings(engine_client: Any, workers: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Why no KV budget is honoured; empty when they are. From here on every request is checked against them."""
    remember_workers(engine_client.vllm_config, KvWorkers.of(workers))
    return kv.findings(engine_client.vllm_config)
