"""The `try` command: one question about one picture under several budgets, side by side."""

from __future__ import annotations

import base64
import io
import json
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table

from ..sweep.client import message_of
from .kept_overlay import Panel, draw

TIMEOUT_SECONDS = 600


class TryError(RuntimeError):
    """The comparison cannot be made; the message says what to change."""


@dataclass(frozen=True)
class Options:
    """Values from the command line.

    Attributes:
        image: file of the picture.
        question: about it.
        keep: ratios of visual tokens to keep, one row and panel each.
        strategy: of all of them; None takes the server's.
        url: of a running server.
        model: name of a served model; None takes the first.
        tokens: most tokens of an answer.
        out: file of the overlay.
    """

    image: Path
    question: str
    keep: tuple[float, ...]
    strategy: str | None
    url: str
    model: str | None
    tokens: int
    out: Path


@dataclass(frozen=True)
class Trial:
    """What came of one budget; `first` and `total` in seconds, `first` None where no token came."""

    keep: float
    text: str
    prompt_tokens: int
    visual: dict[str, Any]
    clamped: bool
    first: float | None
    total: float


def try_budgets(options: Options, console: Console) -> None:
    """Ask, print the table and write the overlay.

    Raises:
        TryError: no picture, no server, or a budget that the server refuses.
    """
    if options.out.suffix.lower() != ".png":
        raise TryError(f"--out {options.out}: the overlay is a PNG; give the file a name that ends in .png")
    picture, address = read_picture(options.image)
    server = Server(options.url)
    model = options.model or server.first_model()
    trials = []
    with console.status("asking") as status:
        for keep in options.keep:
            status.update(f"asking with keep {keep:g}")
            trials.append(server.ask(body_of(options, model, address, keep), keep))
    console.print(table(model, trials))
    panels = [Panel(heading(trial), next(iter(trial.visual.get("items") or ()), None)) for trial in trials]
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        draw(picture, panels).save(options.out)
    except OSError as error:
        raise TryError(f"--out {options.out} cannot be written: {error.strerror or error}") from None
    console.print(f"kept tokens drawn over the picture: {options.out}")


def read_picture(path: Path) -> tuple[Image.Image, str]:
    """The picture, upright, and the file as a data URL. Raises `TryError`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TryError(f"{path}: {error.strerror}; give the file of a picture") from None
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = image.get_format_mimetype() or "image/png"
            picture = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise TryError(f"{path}: no picture that can be read ({error}); videos are for /playground") from None
    return picture, f"data:{kind};base64,{base64.b64encode(data).decode()}"


def body_of(options: Options, model: str, address: str, keep: float) -> dict[str, Any]:
    """The chat request of one budget."""
    visual: dict[str, Any] = {"keep": keep, "return_kept": True}
    if options.strategy is not None:
        visual["strategy"] = options.strategy
    # A name that the server's caches do not know: what was asked before would shorten the times.
    image = {"type": "image_url", "image_url": {"url": address}, "uuid": f"try-{uuid.uuid4().hex}"}
    content = [image, {"type": "text", "text": options.question}]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_completion_tokens": options.tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "pruning": {"visual": visual},
    }


class Server:
    """A running server.

    Args:
        url: without `/v1`.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(headers=headers, timeout=TIMEOUT_SECONDS, trust_env=False)

    def _unreachable(self, error: Exception) -> TryError:
        start = "start one with make serve or vllm-prune serve MODEL, or name another with --url"
        return TryError(f"no server at {self.url} ({error}); {start}")

    def first_model(self) -> str:
        """Name of the first model that is served. Raises `TryError`."""
        try:
            reply = self._client.get(f"{self.url}/v1/models")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from None
        _check(reply, "GET /v1/models")
        try:
            return str(reply.json()["data"][0]["id"])
        except (ValueError, KeyError, IndexError, TypeError):
            raise TryError(f"{self.url} is no OpenAI-compatible server; look at --url") from None

    def ask(self, body: dict[str, Any], keep: float) -> Trial:
        """Ask once. Raises `TryError`."""
        began, first, text, usage = time.perf_counter(), None, [], None
        try:
            with self._client.stream("POST", f"{self.url}/v1/chat/completions", json=body) as reply:
                if reply.status_code != 200:
                    reply.read()
                _check(reply, f"keep {keep:g}")
                for line in reply.iter_lines():
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise TryError(f"keep {keep:g}: {event['error'].get('message', event['error'])}")
                    piece = _text(event)
                    if piece and first is None:
                        first = time.perf_counter() - began
                    text.append(piece)
                    usage = event.get("usage") or usage
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from None
        report = (usage or {}).get("pruning") or {}
        if usage is None or not report.get("visual"):
            raise TryError(
                f"the answer of {self.url} has no usage.pruning; is it a vllm-prune server? Look at --url and --model"
            )
        total, clamped = time.perf_counter() - began, bool(report.get("clamped"))
        return Trial(keep, "".join(text), usage["prompt_tokens"], report["visual"], clamped, first, total)


def _text(event: dict[str, Any]) -> str:
    delta = next((choice.get("delta") or {} for choice in event.get("choices") or ()), {})
    return (delta.get("reasoning") or delta.get("reasoning_content") or "") + (delta.get("content") or "")


def _check(reply: httpx.Response, what: str) -> None:
    if reply.status_code == 401:
        raise TryError(f"{message_of(reply)}; set OPENAI_API_KEY")
    if reply.status_code != 200:
        raise TryError(f"{what}: {message_of(reply)}")


def heading(trial: Trial) -> str:
    """Of a panel."""
    visual = trial.visual
    return f"keep {trial.keep:g} · {visual['strategy']} · {visual['kept_tokens']} of {visual['input_tokens']}"


def table(model: str, trials: Sequence[Trial]) -> Table:
    """One row per budget."""
    result = Table("keep", "strategy", "answer", title=model)
    for name in ("prompt tokens", "visual tokens", "first token", "answer after"):
        result.add_column(name, justify="right")
    for trial in trials:
        visual, first = trial.visual, trial.first
        result.add_row(
            f"{trial.keep:g}" + (" (clamped)" if trial.clamped else ""),
            visual["strategy"],
            trial.text.strip() or "(nothing)",
            str(trial.prompt_tokens),
            f"{visual['kept_tokens']} of {visual['input_tokens']}",
            "-" if first is None else f"{first:.2f} s",
            f"{trial.total:.2f} s",
        )
    return result
