"""The worker whose runner can compact; named by `--worker-cls`, it suits CPU and CUDA."""

from __future__ import annotations

import os
from typing import Any

from vllm.platforms import current_platform

from ..telemetry import metrics
from . import ctrl_c
from .runners.v1 import adopt
from .suitability import because

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker

EVERYTHING = frozenset({"queries", "values", "saliency", "rotation"})


class CompactingWorker(PlatformWorker):
    """vLLM's worker; its V1 runner is adopted as soon as it exists."""

    def init_device(self) -> None:
        """Construct the runner as vLLM does, then put our mixin in front of it."""
        ctrl_c.ignore_when_launched()
        super().init_device()
        metrics.set_model_name(metrics.served_name(self.vllm_config.model_config))
        if not self.use_v2_model_runner:
            # Hooks change the compiled graph, so a compile cache of a server without them must not serve it.
            if isinstance(self.vllm_config.additional_config, dict):
                self.vllm_config.additional_config["vllm_prune_saliency"] = True
            adopt(self.model_runner)

    def initialize_from_config(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse to start under plain vLLM, where nothing else would refuse budgets that cannot be honoured."""
        result = super().initialize_from_config(*args, **kwargs)
        found = inspect(self.model_runner)
        reasons = [
            *found["reasons"],
            *(f"the model gives no {name}" for name in sorted(EVERYTHING - {*found["offers"]})),
        ]
        if reasons and ctrl_c.LAUNCHED not in os.environ:
            why = "; ".join(reasons)
            raise RuntimeError(f"not all KV strategies can run here: {why}. Start with vllm-prune serve instead.")
        return result


def inspect(runner: Any) -> dict[str, Any]:
    """Why a runner cannot compact (empty when it can), and the signals that it offers to strategies."""
    compactor = getattr(runner, "kv_compactor", None)
    reasons = getattr(runner, "kv_reasons", [because("worker", "its runner was not adopted")])
    return {"reasons": list(reasons), "offers": sorted(compactor.offers()) if compactor is not None else []}
