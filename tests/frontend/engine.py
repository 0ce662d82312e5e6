"""vLLM's whole front end with a core that only pretends to compute: for refusals, tenants, usage, drain and logs.

Everything up to the engine core is vLLM's and ours: HTTP routes, renderer, processor, input and output processor. The
core answers each request with as many copies of one token as it allows. Nothing here may stand for a claim about vLLM.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.renderers import renderer_from_config
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.loggers import load_stat_logger_plugin_factories
from vllm.v1.metrics.stats import PrefillStats

from vllm_prune.grid import bitmap
from vllm_prune.kv.suitability import SCHEDULER, WORKER
from vllm_prune.support.self_check import EXTENSION
from vllm_prune.visual.item_plan import plan_of
from vllm_prune.vllm_compat.plugin import patch_server

from ..vllm_names import make_arg_parser

DEMO = Path(__file__).parents[2] / "benchmarks" / "demo_model" / "checkpoint"
TOKEN = "red"
KV_SIGNALS = ["coordinates", "queries", "rotation", "saliency", "values"]


class FakeCore:
    """Stands where vLLM's client of the engine core stands.

    Args:
        token: id of the token that every answer consists of.
        seconds: time per token.
    """

    def __init__(self, token: int, seconds: float = 0.0) -> None:
        self.token, self.seconds = token, seconds
        self.requests: list[Any] = []
        self.aborted: list[str] = []
        self.kept: dict[str, str] = {}
        self.kept_calls = 0
        self.resources = SimpleNamespace(engine_dead=False)
        self.engine_ranks_managed = [0]
        self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        self._running: dict[str, asyncio.Task[None]] = {}

    async def add_request_async(self, request: Any) -> None:
        """Begin to answer."""
        self.requests.append(request)
        for feature in request.mm_features or ():
            if feature.data is not None and (plan := plan_of(feature.data, feature.modality)) is not None:
                cells = feature.data[f"{feature.modality}_grid_thw"].data.prod().item() // 4
                self.kept[plan.key] = bitmap(range(plan.count), cells)
        self._running[request.request_id] = asyncio.create_task(self._answer(request))

    async def _answer(self, request: Any) -> None:
        count = request.sampling_params.max_tokens
        for i in range(count):
            await asyncio.sleep(self.seconds)
            output = EngineCoreOutput(request.request_id, [self.token])
            if i == 0:
                output.prefill_stats = PrefillStats()
            if i == count - 1:
                output.finish_reason = FinishReason.LENGTH
            self._outputs.put_nowait(EngineCoreOutputs(outputs=[output], timestamp=time.monotonic()))

    async def abort_requests_async(self, request_ids: Sequence[str]) -> None:
        """Stop answering."""
        self.aborted += request_ids
        for request_id in request_ids:
            if (task := self._running.pop(request_id, None)) is not None:
                task.cancel()

    async def get_output_async(self) -> EngineCoreOutputs:
        """The next outputs."""
        return await self._outputs.get()

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        """Generation alone."""
        return ("generate",)

    async def collective_rpc_async(
        self, method: str, timeout: float | None = None, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> list[Any]:
        """A worker that says what a healthy one says, and has kept the first tokens of every item that it got."""
        if method == "vllm_prune_kept":
            self.kept_calls += 1
            return [[self.kept.get(key) for key in args[0]]]
        assert method == "vllm_prune_inspect", method
        kv = {"findings": [], "offers": KV_SIGNALS}
        return [{"worker": "fake", "runner": "fake", "model": "fake", "kv": kv, "adapter": True}]

    async def pause_scheduler_async(self, mode: str, clear_cache: bool) -> None:
        """Ends what runs, as vLLM's engine does in mode "abort"."""
        for request_id, task in list(self._running.items()):
            task.cancel()
            output = EngineCoreOutput(request_id, [], finish_reason=FinishReason.ABORT)
            self._outputs.put_nowait(EngineCoreOutputs(outputs=[output], timestamp=time.monotonic()))
        self._running.clear()

    pause_generation_async = pause_scheduler_async
    """Its name from vLLM 0.33 on."""

    async def reset_mm_cache_async(self) -> None:
        """Nothing is cached here."""

    def shutdown(self, timeout: float | None = None) -> None:
        """Stop everything."""
        for task in self._running.values():
            task.cancel()


class FakeEngine(AsyncLLM):
    """vLLM's engine client, complete but for the core."""

    def __init__(self, vllm_config: Any, seconds: float) -> None:
        self.vllm_config, self.model_config = vllm_config, vllm_config.model_config
        self.scheduler_config = vllm_config.scheduler_config
        self.observability_config = vllm_config.observability_config
        self.log_requests, self.log_stats = False, True
        self.renderer = renderer_from_config(vllm_config)
        self.input_processor = InputProcessor(vllm_config, self.renderer)
        self.output_processor = OutputProcessor(self.renderer.tokenizer, log_stats=True, stream_interval=1)
        self.admission_stats = None
        self.core = FakeCore(self.renderer.tokenizer.encode(TOKEN)[0], seconds)
        self.engine_core = self.core  # type: ignore[assignment]
        loggers = [make(vllm_config, 0) for make in load_stat_logger_plugin_factories()]
        self.logger_manager = SimpleNamespace(  # type: ignore[assignment]
            record=lambda engine_idx, **stats: [
                logger.record(stats["scheduler_stats"], stats["iteration_stats"]) for logger in loggers
            ]
        )
        self._client_count, self.output_handler = 1, None
        self.profiler = None


def arguments(*more: str) -> Namespace:
    """vLLM's arguments for the demo model, with our classes, as `vllm-prune serve` gives them."""
    parser = make_arg_parser(FlexibleArgumentParser())
    ours = ["--scheduler-cls", SCHEDULER, "--worker-cls", WORKER, "--worker-extension-cls", EXTENSION]
    parsed = parser.parse_args(
        [
            "--model",
            str(DEMO),
            "--served-model-name",
            "demo",
            "--max-model-len",
            "4096",
            "--dtype",
            "float32",
            *ours,
            *more,
        ]
    )
    assert isinstance(parsed, Namespace)
    return parsed


@contextlib.asynccontextmanager
async def front_end(args: Namespace, seconds: float = 0.0) -> AsyncIterator[tuple[httpx.AsyncClient, FakeEngine]]:
    """The server's application, without a socket.

    Args:
        args: see `arguments`.
        seconds: time per token of an answer.

    Yields:
        A client of the application, and the engine behind it.
    """
    assert "vllm_prune" in os.environ["VLLM_PLUGINS"].split(",")
    # A process that was started as a server has this from the plugin; this one may have loaded plugins before.
    patch_server()
    config = AsyncEngineArgs.from_cli_args(args).create_engine_config()
    engine = FakeEngine(config, seconds)
    tasks = await engine.get_supported_tasks()
    app = build_app(args, tasks, engine.model_config)
    await init_app_state(engine, app.state, args, tasks)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60) as client:
            yield client, engine
    finally:
        engine.shutdown(0)
