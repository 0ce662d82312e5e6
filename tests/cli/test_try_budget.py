"""`vllm-prune try` against a server that answers as the contract says."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from vllm_prune.cli.kept_overlay import EDGE, Panel, draw, overlaid
from vllm_prune.cli.main import app
from vllm_prune.grid import bitmap

ROWS, COLS = 3, 4


class Contract:
    """What the server was asked, and how it answers.

    Attributes:
        refuse: status and message for chats, None for the usual answer.
        report: whether answers carry `usage.pruning`.
        broken: the stream ends with an error.
    """

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.refuse: tuple[int, str] | None = None
        self.report, self.broken = True, False
        contract = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                contract.keys.append(self.headers["authorization"])
                self.reply(200, {"data": [{"id": "first"}, {"id": "second"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                contract.bodies.append(body)
                if contract.refuse is not None:
                    status, message = contract.refuse
                    self.reply(status, {"error": {"message": message, "param": "pruning.visual.keep"}})
                    return
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.end_headers()
                for event in contract.events(body):
                    self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.wfile.write(b"data: [DONE]\n\n")

            def reply(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                """Be quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        visual = body["pruning"]["visual"]
        tokens = ROWS * COLS
        kept = max(1, int(visual["keep"] * tokens))
        yield {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
        yield {"choices": [{"delta": {"content": f"answer at {visual['keep']}"}}]}
        if self.broken:
            yield {"error": {"message": "the engine is gone"}}
            return
        item = {
            "modality": "image", "grid": [1, ROWS, COLS], "input_tokens": tokens, "kept_tokens": kept,
            "strategy": "uniform", "kept": bitmap(range(kept), tokens),
        }  # fmt: skip
        report = {
            "visual": {"strategy": "uniform", "input_tokens": tokens, "kept_tokens": kept, "items": [item]},
            "clamped": [],
        }
        usage = {"prompt_tokens": 9 + kept, "completion_tokens": 3}
        yield {"choices": [], "usage": {**usage, "pruning": report} if self.report else usage}


@pytest.fixture
def contract() -> Iterator[Contract]:
    served = Contract()
    Thread(target=served.server.serve_forever, args=(0.02,), daemon=True).start()
    yield served
    served.server.shutdown()
    served.server.server_close()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "screen.png"
    Image.new("RGB", (280, 210), (200, 120, 40)).save(path)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["try", *map(str, arguments)], env={"COLUMNS": "160"})


def test_answers_tokens_and_times_side_by_side(contract: Contract, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "kept.png"
    result = run(picture, "what is it?", "--keep", "1,0.5,0.25", "--url", f"{contract.url}/v1/", "--out", out)
    assert result.exit_code == 0, result.output
    for text in ("answer at 1", "answer at 0.5", "answer at 0.25", "12 of 12", "6 of 12", "3 of 12", "21", "15", " s "):
        assert text in result.output
    assert [body["pruning"]["visual"] for body in contract.bodies] == [
        {"keep": 1.0, "return_kept": True}, {"keep": 0.5, "return_kept": True}, {"keep": 0.25, "return_kept": True}
    ]  # fmt: skip
    names = set()
    for body in contract.bodies:
        assert body["model"] == "first"
        (image, text) = body["messages"][0]["content"]
        assert text["text"] == "what is it?"
        names.add(image["uuid"])
        assert base64.b64decode(image["image_url"]["url"].split(",")[1]) == picture.read_bytes()
    assert len(names) == 3, "times of a picture that the server knows say nothing"
    with Image.open(out) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 3 * 280


def test_names_that_are_given_are_used(
    contract: Contract, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-1")
    more = ["--strategy", "stts", "--model", "mine", "--tokens", "7", "--out", tmp_path / "x.png"]
    assert run(picture, "?", "--keep", "0.5", "--url", contract.url, *more).exit_code == 0
    (body,) = contract.bodies
    assert body["pruning"]["visual"]["strategy"] == "stts"
    assert (body["model"], body["max_completion_tokens"]) == ("mine", 7)


@pytest.mark.parametrize(
    ("refuse", "words"),
    [
        ((400, "unknown strategy 'x'; known: uniform"), ["keep 0.5", "known: uniform"]),
        ((401, "this server wants a key"), ["set OPENAI_API_KEY"]),
        ((503, "the server is full"), ["the server is full"]),
    ],
)
def test_refusals_in_the_servers_words(
    contract: Contract, picture: Path, refuse: tuple[int, str], words: list[str]
) -> None:
    contract.refuse = refuse
    result = run(picture, "?", "--keep", "0.5", "--url", contract.url)
    assert result.exit_code == 2
    assert all(word in result.output for word in words)


def test_errors_say_what_to_change(contract: Contract, picture: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    at = ["--url", contract.url]
    contract.report = False
    cases = {
        "give the file of a picture": [tmp_path / "none.png", "?", *at],
        "no picture that can be read": [text, "?", *at],
        "ends in .png": [picture, "?", *at, "--out", "kept.jpg"],
        "above 0 and at most 1": [picture, "?", *at, "--keep", "1,2"],
        "is not a list of numbers": [picture, "?", *at, "--keep", "half"],
        "--url": [picture, "?", "--url", "http://127.0.0.1:9"],
        "no usage.pruning": [picture, "?", *at],
    }
    for words, arguments in cases.items():
        result = run(*arguments)
        assert result.exit_code == 2, (words, result.output)
        assert words in " ".join(result.output.replace("│", " ").split()), result.output


def test_a_stream_that_breaks_is_an_error(contract: Contract, picture: Path) -> None:
    contract.broken = True
    result = run(picture, "?", "--url", contract.url)
    assert result.exit_code == 2
    assert "the engine is gone" in result.output


def test_kept_cells_keep_their_pixels_and_others_lose_them() -> None:
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(60, 255, (90, 120, 3), dtype=np.uint8))
    cells = np.zeros((ROWS, COLS), dtype=bool)
    cells[0, 0] = cells[0, 1] = cells[2, 3] = True
    before, after = np.asarray(picture).astype(int), np.asarray(overlaid(picture, cells)).astype(int)
    for row in range(ROWS):
        for col in range(COLS):
            inside = np.s_[30 * row + 1 : 30 * row + 29, 30 * col + 1 : 30 * col + 29]
            if cells[row, col]:
                assert (after[inside] == before[inside]).all()
            else:
                assert (after[inside].max(-1) == after[inside].min(-1)).all()
                assert after[inside].mean() < 0.5 * before[inside].mean()
    # One outline around two neighbours: a line below both, none between them.
    assert (after[29, 5] == EDGE).all()
    assert (after[10, 59] == EDGE).all()
    assert (after[10, 29] == before[10, 29]).all()


def test_an_item_that_nobody_remembers_is_drawn_plain() -> None:
    picture = Image.new("RGB", (300, 300), (10, 200, 10))
    item = {"grid": [1, 2, 2], "kept": None}
    sheet = draw(picture, [Panel("keep 0.5", item), Panel("nothing", None)])
    colours = {colour for _, colour in sheet.getcolors(1 << 20) or ()}
    assert (10, 200, 10) in colours
    assert EDGE not in colours
