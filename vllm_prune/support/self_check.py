"""A worker extension that lets the launcher ask which classes really run."""

from __future__ import annotations

from typing import Any

EXTENSION = "vllm_prune.support.self_check.WorkerInspection"
"""Value of `--worker-extension-cls`."""


class WorkerInspection:
    """Mixed into vLLM's worker by `--worker-extension-cls`; adds one read-only call."""

    model_runner: Any

    def vllm_prune_inspect(self) -> dict[str, Any]:
        """Names of the classes in use, whether the model is one of our adapters, and what KV eviction can do."""
        from ..kv.worker import inspect as inspect_kv

        model = self.model_runner.get_model()
        return {
            "worker": type(self).__qualname__,
            "runner": f"{type(self.model_runner).__module__}.{type(self.model_runner).__qualname__}",
            "model": f"{type(model).__module__}.{type(model).__qualname__}",
            "kv": inspect_kv(self.model_runner),
            "adapter": bool(getattr(model, "vllm_prune_adapter", False)),
        }
