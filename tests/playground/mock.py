"""A server with the public routes that the page uses: answers as in the contract, bitmaps of a known pattern."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

DIST = Path(__file__).parents[2] / "server" / "playground" / "dist"
CELL = 28
FRAMES_PER_STEP = 2
TEXT_TOKENS = 24
MODEL = "models/demo"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src blob:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
TOWER = {
    "where": {"default": "embed", "enum": ["embed", "tower"], "title": "Where", "type": "string"},
    "after": {
        "anyOf": [{"maximum": 128, "minimum": 0, "type": "integer"}, {"type": "null"}],
        "default": None,
        "title": "After",
    },
}


def strategy(name: str, part: str, modality: list[str], summary: str, options: dict[str, Any]) -> dict[str, Any]:
    """An entry of the catalogue."""
    return {
        "name": name, "part": part, "modality": modality, "needs": [], "summary": summary, "paper": "baseline",
        "options": {"properties": options, "type": "object", "additionalProperties": False},
    }  # fmt: skip


BOTH = ["image", "video"]
CATALOGUE = [
    strategy("divprune", "visual", BOTH, "cells that are far from each other", TOWER),
    strategy("evs", "visual", ["video"], "cells that changed since the previous frame", {}),
    strategy("none", "visual", BOTH, "every cell", {}),
    strategy("random", "visual", BOTH, "a random subset", TOWER),
    strategy("uniform", "visual", BOTH, "evenly spaced cells", TOWER),
    strategy("gui_kv", "kv", ["cache"], "what the last tokens attend to", {}),
    strategy("snapkv", "kv", ["cache"], "what the last tokens attend to, with its neighbours", {}),
]
PRESETS = [{"name": "fast", "pruning": {"visual": {"strategy": "uniform", "keep": 0.25}, "kv": None}}]


class Refused(Exception):
    """An answer with an OpenAI error body."""

    def __init__(self, status: int, message: str, param: str | None = None, retry: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.retry = status, param, retry

    def response(self) -> JSONResponse:
        """The answer."""
        error = {"message": str(self), "type": "BadRequestError", "param": self.param, "code": self.status}
        headers = {"Retry-After": self.retry} if self.retry else {}
        return JSONResponse({"error": error}, self.status, headers)


@dataclass
class Controls:
    """What a test changes.

    Attributes:
        key: wanted of every request, None for none.
        preview_seconds: how long a preview takes.
        first_seconds, piece_seconds: until the first piece of an answer, and between pieces.
        answer: text that is streamed word by word.
        refuse: answer to the next chats, None for the usual one.
        break_after: pieces after which a stream ends with an error, None for never.
        previews, chats: bodies of the requests, previews that the client left included.
        left: previews that the client did not wait for.
    """

    key: str | None = None
    preview_seconds: float = 0.0
    first_seconds: float = 0.0
    piece_seconds: float = 0.0
    answer: str = "the star is green ✓"
    refuse: Refused | None = None
    break_after: int | None = None
    previews: list[dict[str, Any]] = field(default_factory=list)
    chats: list[dict[str, Any]] = field(default_factory=list)
    left: int = 0


def bitmap(name: str, count: int, grid: tuple[int, int, int]) -> np.ndarray:
    """Kept tokens, bool [steps, rows, columns]: `count` of them, chosen by a hash, the same for equal arguments."""
    size = int(np.prod(grid))
    if name == "uniform":
        chosen = np.arange(count) * size // count
    else:
        seed = int.from_bytes(hashlib.sha256(f"{name} {grid}".encode()).digest()[:8], "big")
        chosen = np.random.default_rng(seed).permutation(size)[:count]
    flags = np.zeros(size, dtype=bool)
    flags[chosen] = True
    return flags.reshape(grid)


def grid_of(part: dict[str, Any]) -> tuple[str, tuple[int, int, int]]:
    """Modality and grid of a content part."""
    modality = part["type"].removesuffix("_url")
    data = base64.b64decode(part[part["type"]]["url"].split(",", 1)[1])
    if modality == "image":
        with Image.open(io.BytesIO(data)) as image:
            return modality, (1, max(1, round(image.height / CELL)), max(1, round(image.width / CELL)))
    with av.open(io.BytesIO(data)) as container:
        frames = sum(1 for _ in container.decode(video=0))
        stream = container.streams.video[0]
        return modality, (-(-frames // FRAMES_PER_STEP), stream.height // CELL, stream.width // CELL)


KNOWN = {
    "visual": {"strategy", "keep", "max_tokens", "image", "video", "options", "return_kept"},
    "kv": {"strategy", "keep", "max_tokens", "window", "buffer", "options"},
}


def check(pruning: Any) -> None:
    """Refuse what the contract does not know."""
    for part, known in KNOWN.items():
        fields = pruning.get(part)
        if fields is None:
            continue
        for name in fields:
            if name not in known:
                raise Refused(400, f"pruning.{part}.{name}: unknown field", f"pruning.{part}.{name}")
        if fields["strategy"] not in [one["name"] for one in CATALOGUE if one["part"] == part]:
            raise Refused(400, f"unknown strategy {fields['strategy']}", f"pruning.{part}.strategy")
        if ("keep" in fields) == ("max_tokens" in fields):
            raise Refused(400, "give one of keep and max_tokens", f"pruning.{part}.keep")
        if "keep" in fields and not 0 < fields["keep"] <= 1:
            param = f"pruning.{part}.keep"
            raise Refused(400, f"{param}: Input should be greater than 0 and at most 1", param)


def visual(body: dict[str, Any], items: bool) -> tuple[dict[str, Any] | None, int, int]:
    """`usage.pruning.visual`, and the visual tokens with and without pruning."""
    parts = [part for message in body["messages"] for part in message["content"] if part["type"] != "text"]
    shapes = [grid_of(part) for part in parts]
    full = sum(int(np.prod(grid)) for _, grid in shapes)
    fields = body["pruning"].get("visual")
    if not shapes:
        return None, full, full
    if fields is None:
        return {"strategy": "none", "input_tokens": full, "kept_tokens": full}, full, full
    items_kept, kept = [], 0
    for modality, grid in shapes:
        size = int(np.prod(grid))
        share = fields["keep"] if "keep" in fields else min(1.0, fields["max_tokens"] / full)
        count = max(1, int(size * share + 1e-9))
        kept += count
        flags = bitmap(fields["strategy"], count, grid)
        packed = base64.b64encode(np.packbits(flags.ravel()).tobytes()).decode()
        items_kept.append({"modality": modality, "grid": list(grid), "input_tokens": size, "kept_tokens": count,
                      "strategy": fields["strategy"], "kept": packed})  # fmt: skip
    # As vLLM has them: all pictures, then all videos.
    items_kept.sort(key=lambda item: item["modality"])
    summary = {"strategy": fields["strategy"], "input_tokens": full, "kept_tokens": kept}
    return (summary | {"items": items_kept} if items else summary), kept, full


def cache(body: dict[str, Any], prompt: int) -> dict[str, Any] | None:
    """`usage.pruning.kv`."""
    fields = body["pruning"].get("kv")
    if fields is None:
        return None
    kept = min(prompt, fields["max_tokens"] if "max_tokens" in fields else max(8, int(prompt * fields["keep"])))
    evicted = prompt - kept
    return {"strategy": fields["strategy"], "prompt_tokens": prompt, "kept_tokens": kept, "evicted_tokens": evicted,
            "freed_blocks": evicted // 16, "compactions": 1}  # fmt: skip


class Mock:
    """The server, in a thread, for as long as a `with` block lasts."""

    def __init__(self) -> None:
        self.controls = Controls()
        routes = [
            Route("/playground", self.page),
            Route("/playground/{path:path}", self.page),
            Route("/v1/models", self.models),
            Route("/v1/pruning/strategies", partial(self.listed, data=CATALOGUE)),
            Route("/v1/pruning/presets", partial(self.listed, data=PRESETS)),
            Route("/v1/pruning/preview", self.preview, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]
        handlers: Any = {Refused: lambda _request, error: error.response()}
        app = Starlette(routes=routes, exception_handlers=handlers)
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)

    def __enter__(self) -> Mock:
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the mock did not start")
            self._thread.join(0.02)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    def page(self, request: Request) -> Response:
        """The bundle."""
        name = request.path_params.get("path", "index.html")
        if not (DIST / name).is_file():
            return Response(status_code=404)
        return FileResponse(DIST / name, headers=HEADERS)

    def enter(self, request: Request) -> None:
        """Want the key."""
        wanted = self.controls.key
        if wanted is not None and request.headers.get("authorization") != f"Bearer {wanted}":
            raise Refused(401, "this server wants the API key of one of its tenants")

    async def models(self, request: Request) -> Response:
        """`/v1/models`."""
        return await self.listed(request, [{"id": MODEL, "object": "model"}])

    async def listed(self, request: Request, data: list[dict[str, Any]]) -> Response:
        """A list."""
        self.enter(request)
        return JSONResponse({"object": "list", "data": data})

    async def preview(self, request: Request) -> Response:
        """`/v1/pruning/preview`."""
        self.enter(request)
        body = await request.json()
        self.controls.previews.append(body["pruning"])
        end = asyncio.get_running_loop().time() + self.controls.preview_seconds
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.02)
            if await request.is_disconnected():
                self.controls.left += 1
                return Response(status_code=499)
        check(body["pruning"])
        summary, kept, full = visual(body, items=True)
        answer = {"visual": summary, "prompt_tokens": TEXT_TOKENS + kept, "prompt_tokens_unpruned": TEXT_TOKENS + full}
        return JSONResponse(answer)

    async def chat(self, request: Request) -> Response:
        """`/v1/chat/completions`, streamed as the page asks for it."""
        self.enter(request)
        body = await request.json()
        self.controls.chats.append(body)
        if self.controls.refuse is not None:
            raise self.controls.refuse
        check(body["pruning"])
        fields = body["pruning"].get("visual") or {}
        summary, kept, _ = visual(body, items=bool(fields.get("return_kept")))
        prompt = TEXT_TOKENS + kept
        words = self.controls.answer.split(" ")
        pruning = {"visual": summary, "kv": cache(body, prompt), "clamped": []}
        usage = {"prompt_tokens": prompt, "completion_tokens": len(words), "pruning": pruning}
        if not body.get("stream"):
            message = {"role": "assistant", "content": self.controls.answer}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            answer = {"id": "x", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice]}
            return JSONResponse({**answer, "usage": {**usage, "total_tokens": prompt + len(words)}})
        return StreamingResponse(self.stream(words, usage), media_type="text/event-stream")

    async def stream(self, words: list[str], usage: dict[str, Any]) -> AsyncIterator[bytes]:
        """Events, cut into pieces that begin and end inside lines and inside characters."""
        await asyncio.sleep(self.controls.first_seconds)
        for number, word in enumerate(words):
            if number == self.controls.break_after:
                error = {"message": "the engine lost this request", "type": "server_error", "param": None, "code": 500}
                yield f"data: {json.dumps({'error': error})}\n\ndata: [DONE]\n\n".encode()
                return
            delta = {"content": word if number == 0 else f" {word}"}
            for piece in pieces({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}):
                yield piece
            await asyncio.sleep(self.controls.piece_seconds)
        for piece in pieces({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}):
            yield piece
        for piece in pieces({"choices": [], "usage": usage}):
            yield piece
        yield b"data: [DONE]\n\n"


def pieces(chunk: dict[str, Any]) -> list[bytes]:
    """One event in pieces of seven bytes."""
    data = f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()
    return [data[at : at + 7] for at in range(0, len(data), 7)]
