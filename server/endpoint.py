"""vLLM endpoint plugin: our own routes, and the middleware around vLLM's."""

from __future__ import annotations

import asyncio
import os
from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any, get_args

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.serve.utils.api_utils import load_aware_call, validate_json_request, with_cancellation
from vllm.logger import init_logger

from vllm_prune import __version__
from vllm_prune.catalogue import entries
from vllm_prune.config.load import PruneConfig, configuration
from vllm_prune.config.tenants import KEYS_CONFLICT
from vllm_prune.kv.suitability import REFUSED
from vllm_prune.policy import config_for
from vllm_prune.request import current
from vllm_prune.support import kv, self_check, visual
from vllm_prune.support.self_check import EXTENSION
from vllm_prune.telemetry import metrics
from vllm_prune.telemetry.preregister import preregister_labels
from vllm_prune.vllm_compat import item_sizes, output_processor, renderer, version
from vllm_prune.vllm_compat.validation_errors import replace_validation_handler

from .admission.accounts import Accounts
from .admission.estimate import Sizes
from .admission.ledger import Ledger
from .lifecycle import Lifecycle
from .media import connector
from .media.errors import MESSAGES
from .middleware.chain import Chain
from .middleware.observe import install
from .openai.errors import Reason
from .openai.schema import describe
from .openai.validation import answer_validation_error
from .preview import preview
from .readiness import address_of, announce
from .telemetry import tracing

logger = init_logger("vllm.vllm_prune")
router = APIRouter()
LAUNCHED = "VLLM_PRUNE_LAUNCHED"
"""Set by `vllm-prune serve`, which promises a line when the server is ready."""


@dataclass
class ServerState:
    """What the self-check found.

    Attributes:
        verified: our classes are in use in the front end and in every worker, and nothing forbids visual budgets.
        findings: why not, one line each.
        kv_findings: why KV budgets are refused, one line each; empty when they are honoured.
        media_findings: what the media intake does not guard, one line each; empty when it is in use.
        started: start-up is over.
        ledger: what is in flight.
        lifecycle: whether requests are taken.
        sizes: what the admission knows of the model.
        engine_client: vLLM's client of the engine, None before start-up is over.
    """

    verified: bool = False
    findings: list[str] = field(default_factory=list)
    kv_findings: list[str] = field(default_factory=list)
    media_findings: list[str] = field(default_factory=list)
    started: bool = False
    ledger: Ledger = field(default_factory=lambda: Ledger(configuration().admission))
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    sizes: Sizes = field(default_factory=Sizes)
    engine_client: Any = None


class PruneEndpoint:
    """Entry point of the group `vllm.endpoint_plugins`."""

    name = "vllm_prune"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add our routes and our middleware."""
        app.include_router(router)
        if configuration().playground.enabled:
            from .playground.routes import router as playground

            app.include_router(playground)
        describe(app)
        replace_validation_handler(answer_validation_error)
        own = ServerState()
        app.state.vllm_prune = own
        accounts = Accounts(configuration().tenants)
        app.add_middleware(Chain, accounts=accounts, state=own)
        self._app = app

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Prove that our classes are in use, then announce the server once it answers."""
        renderer.patch_renderer()
        output_processor.patch_output_processor()
        own: ServerState = state.vllm_prune
        if configuration().tenants and (args.api_key or os.environ.get("VLLM_API_KEY")):
            raise ValueError(KEYS_CONFLICT)
        own.sizes = sizes_of(engine_client, configuration().admission.weighs)
        own.engine_client = engine_client
        own.lifecycle.supervise(engine_client, state, own.ledger.refuse_waiting)
        metrics.set_model_name(metrics.served_name(engine_client.model_config))
        preregister_labels(entries(), get_args(Reason), MESSAGES, (*REFUSED, "pool_full", "malformed"))
        install(self._app, configuration().logging.lines(), tracing.wanted(engine_client.vllm_config))
        workers = await inspect_workers(engine_client)
        own.findings = visual_findings(engine_client, workers)
        own.kv_findings = kv_findings(engine_client, workers)
        own.media_findings = connector.prepare(engine_client)
        own.verified = not own.findings
        own.started = True
        metrics.publish_build(__version__, version.vllm_version(), own.verified)
        for finding in own.findings:
            logger.warning("visual budgets are refused: %s", finding)
        for finding in own.kv_findings:
            logger.warning("KV budgets are refused: %s", finding)
        for finding in own.media_findings:
            logger.warning("media intake: %s", finding)
        if os.environ.get(LAUNCHED):
            note = "" if own.verified else " (visual budgets are refused, see above)"
            page = "/playground" if configuration().playground.enabled else None
            state.vllm_prune_announcer = asyncio.create_task(announce(address_of(args), note, page))


def sizes_of(engine_client: Any, wanted: bool) -> Sizes:
    """What the admission has to know of the model; the context alone where no cap asks for more."""
    context = engine_client.model_config.max_model_len
    if not wanted:
        return Sizes(context)
    largest, image = item_sizes.largest_items(engine_client), item_sizes.image_sizer(engine_client)
    return Sizes(context, largest, image)


async def inspect_workers(engine_client: Any) -> list[dict[str, Any]]:
    """What every worker says of itself; empty where they cannot be asked."""
    if engine_client.vllm_config.parallel_config.worker_extension_cls != self_check.EXTENSION:
        return []
    return list(await engine_client.collective_rpc("vllm_prune_inspect", timeout=60))


def visual_findings(engine_client: Any, workers: list[dict[str, Any]]) -> list[str]:
    """Reasons why a visual budget would not be honoured; empty when it would be."""
    findings = visual.config_refusals(engine_client.vllm_config)
    if not visual.has_adapted_processor(engine_client.renderer):
        findings.append(visual.unsupported_model(engine_client.model_config))
        return findings
    if not workers:
        findings.append(f"the worker extension {EXTENSION} is not installed; start with vllm-prune serve")
    for rank, found in enumerate(workers):
        if not found["adapter"]:
            findings.append(f"worker {rank} runs {found['model']}, not our adapter; see its log for an import error")
    return findings


def kv_findings(engine_client: Any, workers: list[dict[str, Any]]) -> list[str]:
    """Reasons why a KV budget would not be honoured; empty when it would be. The request seam reads them too."""
    found = [reason for worker in workers for reason in worker["kv"]["reasons"]]
    kv.FOUND.reasons = list(
        dict.fromkeys(found if workers else [kv.because("worker", "it cannot be asked; see above")])
    )
    offers = [frozenset(worker["kv"]["offers"]) for worker in workers]
    kv.FOUND.offers = frozenset.intersection(*offers) if offers else frozenset()
    return [*kv.config_refusals(engine_client.vllm_config), *kv.FOUND.reasons]


def _config() -> PruneConfig:
    """The configuration as it applies to the current request's tenant."""
    context = current()
    return config_for(context.tenant if context is not None else None)


@router.get("/v1/pruning/strategies")
async def strategies() -> JSONResponse:
    """The catalogue."""
    return JSONResponse({"object": "list", "data": entries()})


@router.get("/v1/pruning/presets")
async def presets() -> JSONResponse:
    """The operator's presets."""
    found = _config().presets
    data = [{"name": name, "pruning": preset.model_dump(exclude_unset=True)} for name, preset in found.items()]
    return JSONResponse({"object": "list", "data": data})


@router.post("/v1/pruning/preview", dependencies=[Depends(validate_json_request)], response_model=None)
@with_cancellation
@load_aware_call
async def preview_budget(request: ChatCompletionRequest, raw_request: Request) -> Response:
    """What a budget would keep of a conversation's media, and what it would cost."""
    return await preview(request, raw_request)


@router.get("/health/live")
async def live(raw_request: Request) -> Response:
    """200 while the engine lives, also while it drains; 503 after its death."""
    own: ServerState = raw_request.app.state.vllm_prune
    return Response(status_code=503 if own.lifecycle.dead else 200)


@router.get("/health/ready")
async def ready(raw_request: Request) -> Response:
    """200 when requests are taken: started, engine alive, no signal to end."""
    own: ServerState = raw_request.app.state.vllm_prune
    taken = own.started and not own.lifecycle.draining and not own.lifecycle.dead
    return Response(status_code=200 if taken else 503)


@router.get("/health/startup")
async def startup(raw_request: Request) -> JSONResponse:
    """200 once start-up is over, with the findings of the self-check."""
    own: ServerState = raw_request.app.state.vllm_prune
    body = {
        "started": own.started,
        "pruning": own.verified,
        "findings": own.findings,
        "kv": not own.kv_findings,
        "kv_findings": own.kv_findings,
        "media_findings": own.media_findings,
    }
    return JSONResponse(body, status_code=200 if own.started else 503)
