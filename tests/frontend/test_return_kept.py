"""`return_kept`: shapes, refusals, and that it changes nothing else; with no engine behind the front end."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import av
import httpx
import numpy as np
import pytest
from PIL import Image

from .messages import message, picture

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMALL = {"type": "image_url", "image_url": {"url": picture(140, 112, (200, 30, 30))}}
LARGE = {"type": "image_url", "image_url": {"url": picture(168, 252)}}


async def report(client: httpx.AsyncClient, *parts: dict[str, Any], visual: Any, **more: Any) -> dict[str, Any]:
    body = {"model": "demo", "max_tokens": 2, "messages": message("hi", *parts), "pruning": {"visual": visual}, **more}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["usage"]["pruning"]["visual"]


def flags(item: dict[str, Any]) -> np.ndarray:
    """Which tokens are kept, bool [M]; the rest of the last byte has to be empty."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(item["kept"]), dtype=np.uint8))
    assert len(bits) == -(-item["input_tokens"] // 8) * 8
    assert not bits[item["input_tokens"] :].any()
    return bits[: item["input_tokens"]].astype(bool)


@pytest.mark.slow
async def test_each_item_in_prompt_order(client: httpx.AsyncClient) -> None:
    visual = {"strategy": "divprune", "keep": 0.3, "return_kept": True}
    items = (await report(client, LARGE, SMALL, visual=visual))["items"]
    assert [item["grid"] for item in items] == [[1, 9, 6], [1, 4, 5]]
    for item, tokens in zip(items, (54, 20), strict=True):
        kept = int(0.3 * tokens)
        assert set(item) == {"modality", "grid", "input_tokens", "kept_tokens", "strategy", "kept"}
        assert (item["modality"], item["strategy"]) == ("image", "divprune")
        assert (item["input_tokens"], item["kept_tokens"]) == (tokens, kept)
        # What the fake worker keeps.
        assert flags(item).nonzero()[0].tolist() == list(range(kept))


async def test_an_unpruned_item_keeps_every_token(client: httpx.AsyncClient, engine: Any) -> None:
    calls = engine.core.kept_calls
    for visual in ({"strategy": "none", "return_kept": True}, {"keep": 1, "return_kept": True}):
        (item,) = (await report(client, LARGE, visual=visual))["items"]
        assert (item["strategy"], item["grid"], item["kept_tokens"]) == ("none", [1, 9, 6], 54)
        assert flags(item).all()
    assert engine.core.kept_calls == calls


async def test_pixels_decide_in_the_front_end(client: httpx.AsyncClient, engine: Any) -> None:
    """The worker's word (its first tokens) is not asked for; the strategy's own choice on these pixels is."""
    calls = engine.core.kept_calls
    rng = np.random.default_rng(5)
    canvas = np.zeros((84, 112, 3), dtype=np.uint8)
    canvas[28:56, 56:] = rng.integers(0, 255, (28, 56, 3), dtype=np.uint8)
    image = picture_of(Image.fromarray(canvas))
    visual = {"strategy": "gui_dedup", "keep": 0.25, "return_kept": True}
    for _ in range(2):
        (item,) = (await report(client, image, visual=visual))["items"]
        # The two noisy cells, and the first of the plain ones.
        assert flags(item).nonzero()[0].tolist() == [0, 6, 7]
    assert engine.core.kept_calls == calls


def picture_of(image: Image.Image) -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def clip(frames: int) -> dict[str, Any]:
    """An MP4 of a still page of 3 x 4 tokens."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 112, 84, "yuv420p"
        page = np.full((84, 112, 3), 90, dtype=np.uint8)
        for _ in range(frames):
            for packet in stream.encode(av.VideoFrame.from_ndarray(page, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    url = "data:video/mp4;base64," + base64.b64encode(file.getvalue()).decode()
    return {"type": "video_url", "video_url": {"url": url}}


async def test_a_video_between_images(client: httpx.AsyncClient, engine: Any) -> None:
    visual = {"strategy": "divprune", "keep": 0.5, "video": {"strategy": "uniform", "keep": 0.25}, "return_kept": True}
    items = (await report(client, SMALL, clip(8), LARGE, visual=visual))["items"]
    assert [(item["modality"], item["grid"]) for item in items] == [
        ("image", [1, 4, 5]), ("video", [4, 3, 4]), ("image", [1, 9, 6])
    ]  # fmt: skip
    assert [item["strategy"] for item in items] == ["divprune", "uniform", "divprune"]
    assert [int(flags(item).sum()) for item in items] == [10, 12, 27]


async def test_it_is_no_part_of_any_cache_key(client: httpx.AsyncClient, engine: Any) -> None:
    for visual in ({"keep": 0.4}, {"strategy": "none"}):
        with_kept = [None, True, False]
        hashes = []
        for value in with_kept:
            field = visual if value is None else {**visual, "return_kept": value}
            await report(client, LARGE, visual=field)
            request = engine.core.requests[-1]
            hashes.append((request.mm_features[0].mm_hash, request.mm_features[0].identifier, request.cache_salt))
        assert len(set(hashes)) == 1
    # A control: another budget has another key.
    await report(client, LARGE, visual={"keep": 0.41, "return_kept": True})
    assert engine.core.requests[-1].mm_features[0].mm_hash not in {key for key, *_ in hashes}


async def test_a_grid_is_known_although_the_processor_cache_answers(client: httpx.AsyncClient) -> None:
    part = {"type": "image_url", "image_url": {"url": picture(196, 84, (1, 2, 3))}}
    await report(client, part, visual=None)
    (item,) = (await report(client, part, visual={"strategy": "none", "return_kept": True}))["items"]
    assert item["grid"] == [1, 3, 7]


async def test_what_nobody_remembers_is_null(client: httpx.AsyncClient, engine: Any) -> None:
    visual = {"keep": 0.5, "return_kept": True}
    (item,) = (await report(client, SMALL, visual=visual))["items"]
    assert item["kept"] is not None
    engine.core.kept.clear()
    (item,) = (await report(client, SMALL, visual=visual))["items"]
    assert item["kept"] is None
    assert (item["grid"], item["kept_tokens"]) == ([1, 4, 5], 10)


async def test_an_engine_that_cannot_say_costs_no_answer(
    client: httpx.AsyncClient, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: Any, **kwargs: Any) -> list[Any]:
        raise RuntimeError("no worker")

    monkeypatch.setattr(engine.core, "collective_rpc_async", broken)
    (item,) = (await report(client, SMALL, visual={"keep": 0.45, "return_kept": True}))["items"]
    assert item["kept"] is None


async def test_streams(client: httpx.AsyncClient) -> None:
    body = {
        "model": "demo", "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True},
        "messages": message("hi", LARGE), "pruning": {"visual": {"keep": 0.6, "return_kept": True}},
    }  # fmt: skip
    answer = await client.post("/v1/chat/completions", json=body)
    events = [json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: {")]
    (usage,) = [event["usage"]["pruning"] for event in events if event.get("usage")]
    assert flags(usage["visual"]["items"][0]).sum() == 32


async def test_without_it_nothing_is_added_and_nobody_is_called(client: httpx.AsyncClient, engine: Any) -> None:
    calls = engine.core.kept_calls
    assert "items" not in await report(client, LARGE, visual={"keep": 0.5})
    assert engine.core.kept_calls == calls


async def test_a_text_alone_has_no_items(client: httpx.AsyncClient) -> None:
    assert await report(client, visual={"keep": 0.5, "return_kept": True}) is None


@pytest.mark.parametrize("value", [1, "true", None, []])
async def test_only_true_and_false(client: httpx.AsyncClient, value: Any) -> None:
    pruning = {"visual": {"keep": 0.5, "return_kept": value}}
    body = {"model": "demo", "messages": message("hi"), "pruning": pruning}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "pruning.visual.return_kept"


@pytest.mark.parametrize(
    "path", ["/tokenize", "/v1/messages/count_tokens", "/v1/chat/completions/render", "/v1/messages/render"]
)
async def test_routes_that_encode_nothing_refuse_it(client: httpx.AsyncClient, path: str) -> None:
    pruning = {"visual": {"keep": 0.5, "return_kept": True}}
    body = {"model": "demo", "max_tokens": 4, "messages": message("hi"), "pruning": pruning}
    answer = await client.post(path, json=body)
    if answer.status_code == 404 and "error" not in answer.json():
        pytest.skip("not a route of this configuration")
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "pruning.visual.return_kept"
