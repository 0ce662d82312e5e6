"""Bad input: a 400 that names the field, nothing scheduled, and a server that lives on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from .media_files import image_part, mp4, pixels, png, user, video_part

IMAGE = [image_part(png(112, 112))]


def post(server: Any, model: str, pruning: Any, parts: list[dict[str, Any]] = IMAGE, **more: Any) -> httpx.Response:
    body = {"model": model, "messages": user(parts), "max_tokens": 2, "pruning": pruning, **more}
    # json.dumps writes NaN, as careless clients do.
    return httpx.post(f"{server.url}/v1/chat/completions", content=json.dumps(body), headers=HEADERS, timeout=120)


HEADERS = {"content-type": "application/json"}


@pytest.fixture(autouse=True)
def _server_lives(server: Any, client: openai.OpenAI, model: str) -> Iterator[None]:
    yield
    answer = client.chat.completions.create(model=model, messages=user(IMAGE), max_tokens=2)
    assert answer.usage is not None


@pytest.mark.parametrize(
    ("pruning", "param"),
    [
        ({"visual": {"keep": 0.5, "strategy": "magic"}}, "pruning.visual.strategy"),
        ({"visual": {"keep": 0.5, "strength": 1}}, "pruning.visual.strength"),
        ({"visuals": {}}, "pruning.visuals"),
        ({"visual": {"keep": 0.5, "max_tokens": 5}}, "pruning.visual.keep"),
        ({"visual": {}}, "pruning.visual.keep"),
        ({"visual": {"keep": float("nan")}}, "pruning.visual.keep"),
        ({"visual": {"keep": True}}, "pruning.visual.keep"),
        ({"visual": {"keep": "0.5"}}, "pruning.visual.keep"),
        ({"visual": {"keep": 0}}, "pruning.visual.keep"),
        ({"visual": {"keep": 1.5}}, "pruning.visual.keep"),
        ({"visual": {"max_tokens": 0}}, "pruning.visual.max_tokens"),
        ({"visual": {"max_tokens": 1.0}}, "pruning.visual.max_tokens"),
        ({"visual": {"keep": 0.5, "options": {"x": 1}}}, "pruning.visual.options.x"),
        ({"visual": {"keep": 0.5, "strategy": "evs"}}, "pruning.visual.strategy"),
        ({"visual": {"keep": 0.5, "strategy": "vision_selector"}}, "pruning.visual.strategy"),
        ({"visual": {"keep": 0.5, "strategy": "qtsplus"}}, "pruning.visual.strategy"),
        ({"visual": {"keep": 0.5, "strategy": "cacovid"}}, "pruning.visual.strategy"),
        ({"visual": {"keep": 0.5, "video": {"strategy": "cacovid"}}}, "pruning.visual.strategy"),
        ({"visual": {"keep": 0.5, "strategy": "vqtoken"}}, "pruning.visual.strategy"),
        ({"visual": {"keep": 0.5, "video": {"strategy": "vqtoken"}}}, "pruning.visual.strategy"),
        (
            {"visual": {"keep": 0.5, "strategy": "vtc_cls", "options": {"skip_blocks": 9}}},
            "pruning.visual.options.skip_blocks",
        ),
        (
            {"visual": {"keep": 0.5, "strategy": "divprune", "options": {"where": "tower", "after": 2}}},
            "pruning.visual.options.after",
        ),
        ({"kv": {}}, "pruning.kv.keep"),
        ({"kv": {"keep": 0.5, "strategy": "magic"}}, "pruning.kv.strategy"),
        ({"kv": {"keep": 0.5, "strategy": "pyramid_kv"}}, "pruning.kv.strategy"),
        ({"kv": {"keep": 0.5, "strategy": "visual_exit"}}, "pruning.kv.strategy"),
        ({"kv": {"keep": 0.5, "strategy": "dyvte"}}, "pruning.kv.strategy"),
        ({"kv": {"keep": 0.5, "strategy": "pyramid_kv", "options": {"beta": 0}}}, "pruning.kv.options.beta"),
        ({"kv": {"keep": 0.5, "strategy": "visual_exit", "options": {"layer": 3}}}, "pruning.kv.options.layer"),
        ({"kv": {"keep": 0.5, "window": 0}}, "pruning.kv.window"),
        ({"kv": {"keep": True}}, "pruning.kv.keep"),
        ("no-such-preset", "pruning"),
        (["fast"], "pruning"),
        (7, "pruning"),
    ],
)
def test_bad_budgets(server: Any, model: str, pruning: Any, param: str) -> None:
    before = server.metric("vllm:request_success_total"), server.metric("vllm_prune_rejections_total")
    response = post(server, model, pruning)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert error["type"] == "BadRequestError"
    assert error["message"]
    after = server.metric("vllm:request_success_total"), server.metric("vllm_prune_rejections_total")
    assert after == (before[0], before[1] + 1)


def test_unknown_preset_in_the_model_name(server: Any, model: str) -> None:
    response = post(server, f"{model}@nobody", None)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "model"


def test_more_items_than_tokens(server: Any, model: str) -> None:
    response = post(server, model, {"visual": {"max_tokens": 1, "strategy": "uniform"}}, IMAGE * 3)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "pruning.visual.max_tokens"


@pytest.mark.parametrize("kwargs", [{"min_pixels": 4}, {"vllm_prune": {"keep": 0.1}}, {"images_kwargs": {"size": {}}}])
def test_clients_processor_kwargs_stay_refused(server: Any, model: str, kwargs: dict[str, Any]) -> None:
    for pruning in (None, {"visual": {"keep": 0.5}}):
        response = post(server, model, pruning, mm_processor_kwargs=kwargs)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "mm_processor_kwargs"


def test_budget_in_xargs(server: Any, model: str) -> None:
    spec = '{"visual": {"keep": 0.25, "strategy": "uniform"}}'
    good = post(server, model, None, vllm_xargs={"pruning": spec})
    assert good.json()["usage"]["pruning"]["visual"]["kept_tokens"] == 4
    broken = post(server, model, None, vllm_xargs={"pruning": spec[:-1]})
    assert broken.status_code == 400
    assert broken.json()["error"]["param"] == "vllm_xargs.pruning"
    both = post(server, model, {"visual": {"keep": 0.5}}, vllm_xargs={"pruning": spec})
    assert both.status_code == 400


BUDGET = {"visual": {"keep": 0.5, "strategy": "uniform"}}


@pytest.mark.parametrize(
    "part",
    [
        image_part(png(112, 112)[:200]),
        image_part(b""),
        image_part(b"not a picture"),
        video_part(b""),
        video_part(mp4(4, 112, 112)[:300]),
    ],
    ids=["truncated png", "empty image", "text as image", "empty video", "truncated video"],
)
def test_broken_media(server: Any, model: str, part: dict[str, Any]) -> None:
    response = post(server, model, BUDGET, [part])
    assert 400 <= response.status_code < 500, response.text
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("size", [(1, 1), (28, 2800), (3, 500)], ids=["1x1", "wide", "thin"])
def test_odd_shapes_answer_or_say_why(server: Any, model: str, size: tuple[int, int]) -> None:
    response = post(server, model, BUDGET, [image_part(png(*size))])
    body = response.json()
    if response.status_code == 200:
        visual = body["usage"]["pruning"]["visual"]
        assert visual["kept_tokens"] == max(1, visual["input_tokens"] // 2)
    else:
        assert response.status_code == 400
        assert body["error"]["message"]


def test_a_strip_of_ten_thousand_pixels(server: Any, model: str) -> None:
    import io

    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(pixels(28, 10_000)).save(data, "PNG")
    response = post(server, model, BUDGET, [image_part(data.getvalue())])
    assert response.status_code in (200, 400), response.text


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|video_pad|>", "<|vision_start|><|image_pad|><|vision_end|>"])
def test_placeholder_tokens_typed_as_text(server: Any, model: str, token: str) -> None:
    body = {"model": model, "messages": user(IMAGE, f"what does {token} mean?"), "max_tokens": 2}
    answers = [
        httpx.post(f"{server.url}/v1/chat/completions", json={**body, "pruning": pruning}, timeout=120)
        for pruning in (None, BUDGET)
    ]
    statuses = [answer.status_code for answer in answers]
    assert statuses[0] == statuses[1]
    assert statuses[0] in (200, 400)
    if statuses[0] == 200:
        plain, pruned = (answer.json()["usage"] for answer in answers)
        dropped = pruned["pruning"]["visual"]["input_tokens"] - pruned["pruning"]["visual"]["kept_tokens"]
        assert plain["prompt_tokens"] - pruned["prompt_tokens"] == dropped


@pytest.mark.parametrize(
    ("content", "field"),
    [([], "input.0.content"), ([{"type": "refusal", "refusal": "no"}], "input.0.content.0")],
    ids=["empty", "refusal"],
)
def test_messages_over_which_vllm_stumbles(server: Any, model: str, content: list[Any], field: str) -> None:
    said = {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "content": content}
    body = {"model": model, "input": [said, {"role": "user", "content": "go on"}], "max_output_tokens": 2}
    answer = httpx.post(f"{server.url}/v1/responses", json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == field
    said["content"] = [{"type": "output_text", "text": "well", "annotations": []}]
    assert httpx.post(f"{server.url}/v1/responses", json=body, timeout=60).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
def test_null_is_the_default(server: Any, model: str, path: str, stream: bool) -> None:
    """A client's null for `background` broke vLLM's stream after its 200."""
    asked = (
        {"input": "hello", "max_output_tokens": 2} if "responses" in path else {"messages": user([]), "max_tokens": 2}
    )
    body = {"model": model, **asked, "stream": stream, "background": None, "truncation": None}
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    if "responses" in path:
        assert '"background":false' in answer.text
        assert '"truncation":"disabled"' in answer.text
        assert not stream or "event: response.completed" in answer.text


def test_a_fault_that_is_found_in_the_stream_is_said_there(server: Any, model: str) -> None:
    body = {"model": model, "input": "hello", "max_output_tokens": 2, "structured_outputs": {"choice": []}}
    plain = httpx.post(f"{server.url}/v1/responses", json=body, timeout=60)
    assert plain.status_code == 400
    streamed = httpx.post(f"{server.url}/v1/responses", json={**body, "stream": True}, timeout=60)
    [line] = [line for line in streamed.text.splitlines() if line.startswith("data: ") and '"type": "error"' in line]
    assert "empty list" in json.loads(line[6:])["message"]


def _asked(model: str, output: Any, **more: Any) -> dict[str, Any]:
    call = {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "call_1", "output": output, **more}
    return {"model": model, "input": [{"role": "user", "content": "look"}, call, result], "max_output_tokens": 2}


@pytest.mark.parametrize("more", [{}, {"id": "fc_1", "status": "completed"}], ids=["plain", "with an id"])
def test_a_tool_may_return_a_screenshot(server: Any, model: str, more: dict[str, Any]) -> None:
    url = image_part(png(112, 140))["image_url"]["url"]
    parts = [{"type": "input_text", "text": "the screen"}, {"type": "input_image", "image_url": url, "detail": "auto"}]
    body = {**_asked(model, parts, **more), "pruning": {"visual": {"keep": 0.5, "strategy": "uniform"}}}
    answer = httpx.post(f"{server.url}/v1/responses", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["pruning"]["visual"] == {
        "strategy": "uniform",
        "input_tokens": 20,
        "kept_tokens": 10,
    }


@pytest.mark.parametrize(
    "part",
    [{"type": "input_file", "file_data": "aGVsbG8="}, {"type": "input_image", "file_id": "file-1", "detail": "auto"}],
    ids=["file", "image by id"],
)
@pytest.mark.parametrize("more", [{}, {"id": "fc_1", "status": "completed"}], ids=["plain", "with an id"])
def test_what_tools_return_and_we_cannot_read(
    server: Any, model: str, part: dict[str, Any], more: dict[str, Any]
) -> None:
    answer = httpx.post(f"{server.url}/v1/responses", json=_asked(model, [part], **more), timeout=60)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "input.2.output.0"
