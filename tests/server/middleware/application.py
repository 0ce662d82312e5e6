"""The server's middleware around a small application in the place of vLLM's, without an engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from vllm_prune.config.load import PruneConfig
from vllm_prune.request import RequestContext, current
from vllm_prune_server.admission.accounts import Accounts
from vllm_prune_server.admission.estimate import Sizes
from vllm_prune_server.admission.ledger import Ledger
from vllm_prune_server.admission.observed import ObservedRequests
from vllm_prune_server.lifecycle import Lifecycle
from vllm_prune_server.middleware.chain import Chain
from vllm_prune_server.middleware.observe import Observe
from vllm_prune_server.openai.routes import HONOURING

MODEL = "demo"
ITEM = {"modality": "image", "strategy": "uniform", "input_tokens": 100, "kept_tokens": 25, "capped": False}
USAGE = {"prompt_tokens": 30, "completion_tokens": 1, "total_tokens": 31}
Answer = Callable[[Request, Any], Awaitable[Response]]


class Served:
    """What the application saw of its latest request, and clients of it."""

    def __init__(
        self, config: PruneConfig, answer: Answer | None, monkeypatch: pytest.MonkeyPatch, **state: Any
    ) -> None:
        self.body: Any = None
        self.headers: dict[str, str] = {}
        self.context: RequestContext | None = None
        monkeypatch.setattr("vllm_prune.policy.configuration", lambda: config)
        self.state = SimpleNamespace(
            **{
                "verified": True,
                "findings": [],
                "kv_findings": [],
                "sizes": Sizes(1000),
                "ledger": Ledger(config.admission),
                "observed": ObservedRequests(config.kv, config.admission.retry_after_seconds),
                "lifecycle": Lifecycle(),
                "engine_client": None,
                **state,
            }
        )
        self.answer = answer or plain
        app = FastAPI()
        app.state.openai_serving_models = SimpleNamespace(
            is_base_model=lambda name: name in (MODEL, "odd@name"), lora_requests={}, model_name=lambda: MODEL
        )
        for path in (*HONOURING, "/detokenize", "/collective_rpc", "/v1/embeddings"):
            app.add_api_route(path, self._route(), methods=["POST"])
        app.add_api_route("/health/live", lambda: Response(b"alive"), methods=["GET"])
        app.add_middleware(Chain, accounts=Accounts(config.tenants), state=self.state)
        self.app = Observe(app, lines=False, spans=False)

    def _route(self) -> Any:
        async def route(request: Request) -> Response:
            raw = await request.body()
            self.context, self.headers = current(), dict(request.headers)
            is_json = request.headers.get("content-type", "").startswith("application/json")
            self.body = json.loads(raw) if is_json and raw else raw
            return await self.answer(request, self.body)

        return route

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        """POST of JSON, or of `content`."""
        return self.send("POST", path, **({"json": body} if body is not None else {}), **more)

    def send(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Any request."""

        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.request(method, path, **more)

        return asyncio.run(run())


async def plain(request: Request, body: Any) -> Response:
    """An answer with usage, after an image was prepared."""
    context = current()
    assert context is not None
    if context.decision is not None and context.decision.spec is not None:
        context.record_items([ITEM])
    return JSONResponse({"id": "x", "usage": dict(USAGE)})


def streamed(*chunks: bytes, error: Exception | None = None) -> Answer:
    """Server-sent events, in chunks of the test's choice, and what ends them."""

    async def answer(request: Request, body: Any) -> Response:
        async def events() -> Any:
            for chunk in chunks:
                yield chunk
            if error is not None:
                raise error

        return StreamingResponse(events(), media_type="text/event-stream")

    return answer
