"""A worker extension that lets the front end ask which classes really run, and what was kept of media items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

EXTENSION = "vllm_prune.support.self_check.WorkerInspection"
"""Value of `--worker-extension-cls`."""


class WorkerInspection:
    """Mixed into vLLM's worker by `--worker-extension-cls`; adds read-only calls."""

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

    def vllm_prune_kept(self, keys: Sequence[str]) -> list[str | None]:
        """Kept visual tokens of recent items, as `grid.bitmap` has them; None for items that are not remembered.

        Args:
            keys: `ItemPlan.key` of each item.
        """
        from ..visual.tower.kept_store import KEPT

        return [KEPT.bitmap(key) for key in keys]
