"""Stat-logger plugin: carries the served model's name to our metric labels, and vLLM's timings to our log lines."""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from ..request import context_of_engine_request
from ..telemetry.metrics import served_name, set_model_name


class PruneStatLogger(StatLoggerBase):
    """Adds nothing to vLLM's statistics; its construction is the moment at which the served name is known."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        set_model_name(served_name(vllm_config.model_config))

    def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
        """Keep the statistics of finished engine requests in the contexts of their requests."""
        if iteration_stats is None:
            return
        for finished in iteration_stats.finished_requests:
            if (context := context_of_engine_request(finished.request_id or "")) is not None:
                context.record_engine(finished)

    def log_engine_initialized(self) -> None:
        """Nothing to log."""
