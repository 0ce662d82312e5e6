"""Stat-logger plugin: carries the served model's name to our metric labels, and vLLM's timings to our log lines."""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from ..telemetry.metrics import served_name, set_model_name
from ..telemetry.request_record import WAITING, arrived


class PruneStatLogger(StatLoggerBase):
    """Adds nothing to vLLM's statistics; its construction is the moment at which the served name is known."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        set_model_name(served_name(vllm_config.model_config))

    def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
        """Hand the statistics of finished requests to those that wait for them."""
        if WAITING and iteration_stats is not None:
            for finished in iteration_stats.finished_requests:
                arrived(finished)

    def log_engine_initialized(self) -> None:
        """Nothing to log."""
