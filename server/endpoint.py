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
from vllm_prune.budget.errors import KV_CAUSES, Finding
from vllm_prune.catalogue import entries
from vllm_prune.config.load import PruneConfig, configuration
from vllm_prune.config.tenants import KEYS_CONFLICT
from vllm_prune.kv.ctrl_c import LAUNCHED
from vllm_prune.policy import config_for
from vllm_prune.request import current
from vllm_prune.support.choices import in_force
from vllm_prune.support.self_check import inspect_workers, kv_findings, visual_findings
from vllm_prune.telemetry import metrics
from vllm_prune.telemetry.preregister import preregister_labels
from vllm_prune.visual.models.abilities import families_of, families_with_positions
from vllm_prune.vllm_compat import item_sizes, version
from vllm_prune.vllm_compat.plugin import patch_server
from vllm_prune.vllm_compat.validation_errors import replace_validation_handler

from .admission.accounts import Accounts
from .admission.estimate import Sizes
from .admission.ledger import Ledger
from .admission.observed import ObservedRequests
from .lifecycle import Lifecycle
from .media import connector
from .media.busy import add_handlers
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


@dataclass
class ServerState:
    """The server's state.

    Attributes:
        verified: our classes are in use in the front end and in every worker, and nothing forbids visual budgets.
        findings: why not.
        kv_findings: why KV budgets are refused; empty when they are honoured.
        media_findings: what the media intake does not guard, one line each; empty when it is in use.
        started: start-up is over.
        ledger: what is in flight.
        observed: requests whose queries the workers keep.
        lifecycle: whether requests are taken.
        sizes: what the admission knows of the model.
        engine_client: vLLM's client of the engine, None before start-up is over.
    """

    verified: bool = False
    findings: list[Finding] = field(default_factory=list)
    kv_findings: list[Finding] = field(default_factory=list)
    media_findings: list[str] = field(default_factory=list)
    started: bool = False
    ledger: Ledger = field(default_factory=lambda: Ledger(configuration().admission))
    observed: ObservedRequests = field(
        default_factory=lambda: ObservedRequests(configuration().kv, configuration().admission.retry_after_seconds)
    )
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    sizes: Sizes = field(default_factory=Sizes)
    engine_client: Any = None


class PruneEndpoint:
    """Entry point of the group `vllm.endpoint_plugins`."""

    name = "vllm_prune"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add our routes and our middleware."""
        patch_server()
        app.include_router(router)
        if configuration().playground.enabled:
            from .playground.routes import router as playground

            app.include_router(playground)
        describe(app)
        add_handlers(app)
        replace_validation_handler(answer_validation_error)
        server = ServerState()
        app.state.vllm_prune = server
        accounts = Accounts(configuration().tenants)
        app.add_middleware(Chain, accounts=accounts, state=server)
        self._app = app

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Prove that our classes are in use, then announce the server once it answers."""
        server: ServerState = state.vllm_prune
        if configuration().tenants and (args.api_key or os.environ.get("VLLM_API_KEY")):
            raise ValueError(KEYS_CONFLICT)
        server.sizes = sizes_of(engine_client, configuration())
        server.engine_client = engine_client
        server.lifecycle.supervise(engine_client, state, server.ledger.refuse_waiting)
        metrics.set_model_name(metrics.served_name(engine_client.model_config))
        preregister_labels(entries(), get_args(Reason), MESSAGES, (*KV_CAUSES, "pool_full", "malformed"))
        install(self._app, configuration().logging.lines(), tracing.wanted(engine_client.vllm_config))
        workers = await inspect_workers(engine_client)
        server.findings = visual_findings(engine_client, workers)
        server.kv_findings = kv_findings(engine_client, workers)
        server.media_findings = connector.prepare(engine_client)
        server.verified = not server.findings
        server.started = True
        metrics.publish_build(__version__, version.vllm_version(), server.verified)
        for finding in server.findings:
            logger.warning("visual budgets are refused: %s", finding)
        for finding in server.kv_findings:
            logger.warning("KV budgets are refused: %s", finding)
        for line in server.media_findings:
            logger.warning("media intake: %s", line)
        if os.environ.get(LAUNCHED):
            note = "" if server.verified else " (visual budgets are refused, see above)"
            page = "/playground" if configuration().playground.enabled else None
            state.vllm_prune_announcer = asyncio.create_task(announce(address_of(args), note, page))


def sizes_of(engine_client: Any, config: PruneConfig) -> Sizes:
    """What the admission has to know of the model; the context alone where no cap asks for more."""
    context = engine_client.model_config.max_model_len
    if not config.admission.weighs:
        return Sizes(context)
    largest, image = item_sizes.largest_items(engine_client), item_sizes.image_sizer(engine_client)
    return Sizes(context, largest, image, bool(config.kv.layer_groups))


def _config() -> PruneConfig:
    """The configuration as it applies to the current request's tenant."""
    context = current()
    return config_for(context.tenant if context is not None else None)


@router.get("/v1/pruning/strategies")
async def strategies(raw_request: Request) -> JSONResponse:
    """The catalogue, with the architectures that can run each strategy, and what a budget gets that names none.

    `families_with_positions` are those where a token that the strategy merges can carry several positions.
    """
    data = [
        {**entry, "families": families_of(entry), "families_with_positions": families_with_positions(entry)}
        for entry in entries()
    ]
    client = raw_request.app.state.vllm_prune.engine_client
    defaults = None if client is None else in_force(_config(), client.vllm_config)
    return JSONResponse({"object": "list", "data": data, "defaults": defaults})


@router.get("/v1/pruning/presets")
async def presets() -> JSONResponse:
    """The operator's presets."""
    configured = _config().presets
    data = [{"name": name, "pruning": preset.model_dump(exclude_unset=True)} for name, preset in configured.items()]
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
    server: ServerState = raw_request.app.state.vllm_prune
    return Response(status_code=503 if server.lifecycle.dead else 200)


@router.get("/health/ready")
async def ready(raw_request: Request) -> Response:
    """200 when requests are taken: started, engine alive, no signal to end."""
    server: ServerState = raw_request.app.state.vllm_prune
    taken = server.started and not server.lifecycle.draining and not server.lifecycle.dead
    return Response(status_code=200 if taken else 503)


@router.get("/health/startup")
async def startup(raw_request: Request) -> JSONResponse:
    """200 once start-up is over, with the findings of the self-check."""
    server: ServerState = raw_request.app.state.vllm_prune
    body = {
        "started": server.started,
        "pruning": server.verified,
        "findings": [finding.text for finding in server.findings],
        "kv": not server.kv_findings,
        "kv_findings": [finding.text for finding in server.kv_findings],
        "media_findings": server.media_findings,
    }
    return JSONResponse(body, status_code=200 if server.started else 503)
