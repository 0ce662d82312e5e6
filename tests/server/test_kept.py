"""Kept tokens over HTTP from a real server: `return_kept`, the preview, the playground's route and `vllm-prune try`."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid
from vllm_prune.visual.strategies.base import Context

from .media_files import image_part, mp4, pixels, png, user, video_part

PARTS = [image_part(png(140, 196, 3)), video_part(mp4(6, 84, 112, 4)), image_part(png(112, 84, 5))]
GRIDS = [Grid(1, 5, 7), Grid(2, 3, 4), Grid(1, 4, 3)]
BUDGETS: dict[str, dict[str, Any]] = {
    "pixels": {"strategy": "gui_dedup", "keep": 0.3},
    "behind": {"strategy": "divprune", "keep": 0.3},
    "scorer": {"strategy": "stts", "keep": 0.3},
    "question": {"strategy": "cdpruner", "keep": 0.3},
    "inside": {"strategy": "uniform", "keep": 0.3, "options": {"where": "tower", "after": 1}},
}


def post(server: Any, path: str, parts: list[dict[str, Any]], visual: Any, **more: Any) -> dict[str, Any]:
    body = {"model": server.model_name, "messages": user(parts), "pruning": {"visual": visual}, **more}
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def chat(server: Any, parts: list[dict[str, Any]], visual: Any) -> dict[str, Any]:
    more = {"max_tokens": 2, "temperature": 0}
    usage: dict[str, Any] = post(server, "/v1/chat/completions", parts, visual, **more)["usage"]
    return usage


def cells(item: dict[str, Any]) -> list[int]:
    bits = np.unpackbits(np.frombuffer(base64.b64decode(item["kept"]), dtype=np.uint8))
    assert not bits[item["input_tokens"] :].any()
    return np.flatnonzero(bits).tolist()


@pytest.mark.parametrize("name", BUDGETS)
def test_the_preview_is_what_the_answer_says_cold_and_warm(server: Any, name: str) -> None:
    visual = {**BUDGETS[name], "return_kept": True}
    seen = post(server, "/v1/pruning/preview", PARTS, BUDGETS[name])
    for _ in range(2):
        usage = chat(server, PARTS, visual)
        assert usage["pruning"]["visual"] == seen["visual"]
        assert usage["prompt_tokens"] == seen["prompt_tokens"]
    assert post(server, "/v1/pruning/preview", PARTS, BUDGETS[name]) == seen
    assert seen["prompt_tokens_unpruned"] == chat(server, PARTS, None)["prompt_tokens"]
    items = seen["visual"]["items"]
    assert [item["modality"] for item in items] == ["image", "video", "image"]
    for item, grid in zip(items, GRIDS, strict=True):
        assert item["grid"] == [grid.frames, grid.rows, grid.cols]
        assert len(cells(item)) == item["kept_tokens"] == int(0.3 * grid.tokens)
        assert item["strategy"] == BUDGETS[name]["strategy"]


def test_evenly_spaced_tokens_are_where_they_should_be(server: Any) -> None:
    """A strategy whose choice needs no features, worked out here."""
    seen = post(server, "/v1/pruning/preview", PARTS, BUDGETS["inside"])["visual"]["items"]
    for item, grid in zip(seen, GRIDS, strict=True):
        strategy = VISUAL.create("uniform", {})
        kept = strategy.select(torch.zeros(grid.tokens, 1), grid, item["kept_tokens"], Context())
        assert cells(item) == kept.tolist()


def test_a_resized_item_keeps_all_of_a_smaller_grid(server: Any) -> None:
    """`grid` is the one that the model sees; nothing has to be asked of a worker."""
    visual = {"strategy": "resize", "keep": 0.3}
    counters = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total")
    before = [server.metric(name) for name in counters]
    seen = post(server, "/v1/pruning/preview", PARTS, visual)
    assert [server.metric(name) for name in counters] == before
    for _ in range(2):
        usage = chat(server, PARTS, {**visual, "return_kept": True})
        assert usage["pruning"]["visual"] == seen["visual"]
        assert usage["prompt_tokens"] == seen["prompt_tokens"]
        assert usage["pruning"]["clamped"] == []
    assert seen["prompt_tokens_unpruned"] == chat(server, PARTS, None)["prompt_tokens"]
    # At most 10 of 5 x 7, 7 of 2 frames of 3 x 4, and 3 of 4 x 3.
    assert [item["grid"] for item in seen["visual"]["items"]] == [[1, 2, 4], [2, 1, 2], [1, 2, 1]]
    for item, grid in zip(seen["visual"]["items"], GRIDS, strict=True):
        assert (item["strategy"], item["input_tokens"]) == ("resize", grid.tokens)
        assert cells({**item, "input_tokens": item["kept_tokens"]}) == list(range(int(np.prod(item["grid"]))))
    assert seen["visual"]["kept_tokens"] == 14


def test_contents_are_counted_where_the_count_is_left_open(server: Any) -> None:
    shown = pixels(140, 196, 3)
    contents = [
        shown[28 * row : 28 * row + 28, 28 * col : 28 * col + 28].tobytes() for row in range(5) for col in range(7)
    ]
    first = [place for place, content in enumerate(contents) if content not in contents[:place]]
    visual = {"strategy": "pixel_exact", "keep": "auto", "return_kept": True}
    for _ in range(2):
        (item,) = chat(server, PARTS[:1], visual)["pruning"]["visual"]["items"]
        assert 1 < item["kept_tokens"] == len(first) < 35
        assert cells(item) == first


def test_frames_are_not_dropped_by_resizing(server: Any) -> None:
    body = {"model": server.model_name, "messages": user([PARTS[1]]), "max_tokens": 1}
    for visual in ({"strategy": "resize", "max_tokens": 1}, {"strategy": "resize", "keep": 0.05}):
        answer = httpx.post(f"{server.url}/v1/chat/completions", json={**body, "pruning": {"visual": visual}})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "pruning.visual.keep")
        assert "fewer than the 2 frames" in error["message"]


def test_a_preview_generates_one_dropped_token_or_nothing(server: Any) -> None:
    parts = [image_part(png(168, 112, 11))]
    counters = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total")
    before = [server.metric(name) for name in counters]
    post(server, "/v1/pruning/preview", parts, BUDGETS["pixels"])
    assert [server.metric(name) for name in counters] == before
    seen = post(server, "/v1/pruning/preview", parts, BUDGETS["behind"])
    after = [server.metric(name) for name in counters]
    assert (after[0] - before[0], after[1] - before[1]) == (1, seen["prompt_tokens"])
    # What only the front end has processed is no surprise for the engine.
    assert chat(server, parts, BUDGETS["pixels"])["pruning"]["visual"]["kept_tokens"] == int(0.3 * 24)


def test_the_page_is_there(server: Any) -> None:
    answer = httpx.get(f"{server.url}/playground", timeout=30)
    bundle = Path(__file__).parents[2] / "server" / "playground" / "dist" / "index.html"
    assert answer.status_code == (200 if bundle.is_file() else 404)
    if bundle.is_file():
        assert answer.content == bundle.read_bytes()
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert f"vllm-prune playground: {server.url}/playground" in server.log.read_text()


def test_try_on_a_real_server(server: Any, tmp_path: Path) -> None:
    picture, out = tmp_path / "screen.png", tmp_path / "kept.png"
    picture.write_bytes(png(140, 196, 3))
    command = [sys.executable, "-m", "vllm_prune.cli.main", "try", str(picture), "what is on the screen ?",
               "--keep", "1,0.3", "--strategy", "divprune", "--url", server.url, "--out", str(out)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ, "COLUMNS": "160"})
    assert done.returncode == 0, done.stderr
    assert "35 of 35" in done.stdout
    assert "10 of 35" in done.stdout
    # The right panel: what is not kept has lost its colour.
    seen = chat(server, [image_part(picture.read_bytes())], {**BUDGETS["behind"], "return_kept": True})
    kept = set(cells(seen["pruning"]["visual"]["items"][0]))
    with Image.open(out) as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    left = next(x for x in range(pixels.shape[1] - 1, 0, -1) if (pixels[-30, x] != 255).any()) + 1 - 240
    panel = pixels[-10 - 171 : -10, left : left + 240]
    for cell in range(35):
        row, col = divmod(cell, 7)
        inside = panel[round(row * 171 / 5) + 2 : round((row + 1) * 171 / 5) - 2,
                       round(col * 240 / 7) + 2 : round((col + 1) * 240 / 7) - 2]  # fmt: skip
        dimmed = inside.max() <= 0.35 * 255 + 1
        assert dimmed == (cell not in kept), (cell, json.dumps(sorted(kept)))
