"""The worker whose runner can compact; named by `--worker-cls`, it suits CPU and CUDA."""

from __future__ import annotations

from itertools import count
from typing import Any

from vllm.platforms import current_platform

from ..budget.errors import Finding, kv_finding
from ..config.worker_facts import WorkerFacts
from ..telemetry import metrics
from . import ctrl_c
from .runners.base import make_compacting
from .runners.v1 import CompactingV1
from .runners.v2 import CompactingV2
from .signals import PROVIDERS, offers
from .window_slots import GATED

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker


_NUMBERS = count()


class CompactingWorker(PlatformWorker):
    """vLLM's worker; its model runner becomes a compacting one as soon as it exists."""

    def init_device(self) -> None:
        """Construct the runner as vLLM does, V1 or V2, then put our class for it in front."""
        ctrl_c.ignore_when_launched()
        super().init_device()
        metrics.set_model_name(metrics.served_name(self.vllm_config.model_config))
        make_compacting(self.model_runner, CompactingV2 if self.use_v2_model_runner else CompactingV1)
        # Hooks change the compiled graph, so a compile cache of a server without them must not serve it. Compiled code
        # names what it writes to by this number: the same in every process, and another for each engine of one.
        self.model_runner.kv_number = next(_NUMBERS)
        if isinstance(self.vllm_config.additional_config, dict):
            self.vllm_config.additional_config["vllm_prune_stores"] = self.model_runner.kv_number

    def determine_available_memory(self) -> int:
        """Allocate the windows' queries first, so that vLLM sizes the KV cache beside them."""
        self.model_runner.reserve_windows()
        return int(super().determine_available_memory())

    def initialize_from_config(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse to start under plain vLLM, where nothing else would refuse budgets that cannot be honoured."""
        result = super().initialize_from_config(*args, **kwargs)
        report = inspect(self.model_runner)
        reasons = [Finding.of(wire).text for wire in report["findings"]]
        facts = WorkerFacts.of(self.vllm_config)
        # The scheduler skips budgets that need what is not configured.
        configured = {"moments": facts.prompt_queries > 0, "gates": GATED in facts.weights}
        needed = {name for name in PROVIDERS if configured.get(name, True)}
        reasons += [f"the model gives no {name}" for name in sorted(needed - {*report["offers"]})]
        if reasons and not facts.launched:
            why = "; ".join(reasons)
            raise RuntimeError(f"not all KV strategies can run here: {why}. Start with vllm-prune serve instead.")
        return result


def inspect(runner: Any) -> dict[str, Any]:
    """Why a runner cannot compact (no findings when it can), and the signals that strategies can have there.

    Plain data, as it travels between processes.
    """
    compactor = getattr(runner, "kv_compactor", None)
    findings = getattr(runner, "kv_findings", [kv_finding("worker", "its runner does not compact")])
    return {
        "findings": [finding.wire() for finding in findings],
        "offers": sorted(offers(compactor)) if compactor is not None else [],
    }
