"""Budgets are decided once, before vLLM's routes, on every one of them; without an engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vllm_prune.budget.errors import kv_finding, visual_finding
from vllm_prune.config.load import PruneConfig
from vllm_prune_server.openai.routes import HONOURING, Route

from .application import MODEL, Served

FORMS = [path for path, route in HONOURING.items() if route.form]
JSON_ROUTES = [path for path, route in HONOURING.items() if not route.form]
VISUAL = [path for path in JSON_ROUTES if HONOURING[path].visual]
DECODING = [path for path in JSON_ROUTES if HONOURING[path].kv]
CONFIG = PruneConfig.model_validate(
    {
        "presets": {"fast": {"visual": {"keep": 0.25, "strategy": "uniform"}}},
        "limits": {"min_keep": 0.1},
    }
)
VISUAL_OFF = visual_finding("adapter", "load another model")
KV_OFF = kv_finding("worker", "start with vllm-prune serve")
BUDGET = {"visual": {"keep": 0.5, "strategy": "uniform"}}
KV = {"kv": {"keep": 0.5, "strategy": "snapkv"}}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    return Served(CONFIG, None, monkeypatch)


def body(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **more}


def keep(served: Served) -> str | None:
    assert served.context is not None
    assert served.context.decision is not None
    spec = served.context.decision.spec
    return spec.image.keep if spec is not None and spec.image is not None else None


def refused(answer: Any, param: str | None, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["param"] == param
    assert error["message"]
    assert error["type"]
    return error


@pytest.mark.parametrize("path", VISUAL)
def test_every_way_to_say_it_on_every_route(served: Served, path: str) -> None:
    text = json.dumps(BUDGET)
    for more, expected in (
        ({"pruning": BUDGET}, "0.5"),
        ({"pruning": "fast"}, "0.25"),
        ({"vllm_xargs": {"pruning": text}}, "0.5"),
        ({"vllm_xargs": {"pruning": "fast"}}, "0.25"),
        ({"model": f"{MODEL}@fast"}, "0.25"),
        ({"pruning": BUDGET, "model": f"{MODEL}@fast"}, "0.5"),
        ({"pruning": None, "vllm_xargs": {"pruning": "fast"}}, "0.25"),
        ({}, None),
        ({"pruning": {}}, None),
        ({"pruning": {"visual": None}}, None),
    ):
        answer = served.post(path, body(**more))
        assert answer.status_code == 200, (more, answer.text)
        assert keep(served) == expected, more
        assert served.body["model"] == MODEL
        assert "pruning" not in served.body.get("vllm_xargs", {})


@pytest.mark.parametrize("path", JSON_ROUTES)
def test_bad_budgets_are_refused_on_every_route(served: Served, path: str) -> None:
    refused(served.post(path, body(pruning={"visual": {"keep": 7}})), "pruning.visual.keep")
    refused(served.post(path, body(pruning={"kv": {"keep": 7}})), "pruning.kv.keep")
    refused(served.post(path, body(pruning="slow")), "pruning")
    refused(served.post(path, body(model=f"{MODEL}@slow")), "model")
    refused(served.post(path, body(vllm_xargs={"pruning": "{"})), "vllm_xargs.pruning")
    refused(served.post(path, body(vllm_xargs={"pruning": 7})), "vllm_xargs.pruning")
    refused(served.post(path, body(pruning=BUDGET, vllm_xargs={"pruning": "fast"})), "vllm_xargs.pruning")
    assert served.body is None


@pytest.mark.parametrize("path", ["/detokenize", "/collective_rpc", "/v1/embeddings"])
def test_routes_that_cannot_honour_refuse(served: Served, path: str) -> None:
    assert served.post(path, body()).status_code == 200
    assert served.post(path, body(pruning=None)).status_code == 200
    refused(served.post(path, body(pruning={})), "pruning")
    refused(served.post(path, body(vllm_xargs={"pruning": "fast"})), "pruning")
    refused(served.post(path, body(model=f"{MODEL}@fast")), "model")


@pytest.mark.parametrize("path", DECODING)
def test_kv_budgets_where_something_is_decoded(served: Served, path: str) -> None:
    assert served.post(path, body(pruning=KV)).status_code == 200
    assert served.context is not None
    assert served.context.decision is not None
    assert served.context.decision.kv is not None


@pytest.mark.parametrize("path", [path for path, route in HONOURING.items() if route.visual and not route.kv])
def test_a_render_refuses_a_kv_budget_and_takes_a_default(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(PruneConfig.model_validate({"defaults": KV}), None, monkeypatch)
    assert served.post(path, body()).status_code == 200
    assert served.context is not None
    assert served.context.decision is not None
    assert served.context.decision.kv is None
    refused(served.post(path, body(pruning=KV)), "pruning.kv")


def test_prompts_that_were_rendered_before_refuse_a_visual_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(PruneConfig.model_validate({"defaults": BUDGET}), None, monkeypatch)
    path, tokens = "/inference/v1/generate", {"token_ids": [1, 2], "sampling_params": {}}
    assert served.post(path, tokens).status_code == 200
    assert keep(served) is None
    refused(served.post(path, {**tokens, "pruning": BUDGET}), "pruning.visual")
    parts = {"content_parts": [{"type": "image_url", "url": "data:,"}]}
    assert served.post(
        path, {**tokens, **parts, "pruning": {"visual": {"keep": 0.25, "strategy": "uniform"}}}
    ).is_success
    assert keep(served) == "0.25"


@pytest.mark.parametrize("path", VISUAL)
def test_defaults_and_limits_apply_alike(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"defaults": {"visual": {"keep": 0.4, "strategy": "uniform"}}, "limits": {"max_keep": 0.3}}
    served = Served(PruneConfig.model_validate(config), None, monkeypatch)
    assert served.post(path, body()).status_code == 200
    assert keep(served) == "0.3"
    assert served.post(path, body(pruning={"visual": None})).status_code == 200
    assert keep(served) == "0.3"


def test_a_default_and_xargs_are_one_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(PruneConfig.model_validate({"defaults": BUDGET}), None, monkeypatch)
    text = '{"visual": {"keep": 0.25, "strategy": "uniform"}}'
    assert served.post("/v1/chat/completions", body(vllm_xargs={"pruning": text, "other": 1})).status_code == 200
    assert keep(served) == "0.25"
    assert served.body["vllm_xargs"] == {"other": 1}


ESCAPED = (
    (b'{"pruning": {"visual": {"keep": 7}}}', "plain"),
    (b'{"\\u0070runing": {"visual": {"keep": 7}}}', "escaped"),
    (b'{"pruning": {"visual": null}, "pruning": {"visual": {"keep": 7}}}', "the last of two"),
    ('{"pruning": {"visual": {"keep": 7}}}'.encode("utf-16"), "UTF-16"),
    ('{"pruning": {"visual": {"keep": 7}}}'.encode("utf-8-sig"), "with a mark"),
    (b'{"vllm_xargs": {"prunin\\u0067": "{\\"visual\\": {\\"keep\\": 7}}"}}', "escaped xargs"),
)


@pytest.mark.parametrize(("content", "name"), ESCAPED, ids=[name for _, name in ESCAPED])
def test_no_spelling_slips_through(served: Served, content: bytes, name: str) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    answer = served.post("/v1/chat/completions", content=content, headers=headers)
    refused(answer, "pruning.visual.keep")


def test_of_two_fields_vllm_and_the_decision_read_the_last(served: Served) -> None:
    content = b'{"model": "demo", "pruning": {"visual": {"keep": 7}}, "pruning": "fast"}'
    answer = served.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert keep(served) == "0.25"
    assert served.body["pruning"] == "fast"


def test_a_served_name_with_an_at_sign_is_no_preset(served: Served) -> None:
    assert served.post("/v1/completions", {"model": "odd@name", "prompt": "x"}).status_code == 200
    assert served.body["model"] == "odd@name"


def test_rewritten_bodies_have_their_length_and_all_else(served: Served) -> None:
    odd = {"text": "é\U0001f600\u0000", "number": 1e400, "big": 10**30, "model": f"{MODEL}@fast"}
    content = json.dumps(odd).encode()
    answer = served.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert served.body == {**odd, "model": MODEL}
    assert int(served.headers["content-length"]) < len(content)


def test_untouched_bodies_are_passed_on_byte_for_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    async def answer(request: Any, parsed: Any) -> Any:
        from starlette.responses import Response

        seen.append(await request.body())
        return Response(b"")

    served = Served(CONFIG, answer, monkeypatch)
    content = b'{ "model":"demo" ,"messages":[],  "pruning": null}\n'
    served.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert seen == [content]


FAULTS: tuple[tuple[str, bytes, dict[str, str], int], ...] = (
    ("syntax", b"{", {}, 400),
    ("blanks", b"   ", {}, 400),
    ("not UTF-8", b'{"model": "\xff"}', {}, 400),
    ("5000 digits", b'{"max_tokens": ' + b"9" * 5000 + b"}", {}, 400),
    ("deep objects", b'{"a":' * 3000 + b"1" + b"}" * 3000, {}, 400),
    ("deep lists", b"[" * 200 + b"]" * 200, {}, 400),
    ("half a pair", b'{"model": "\\ud800"}', {}, 400),
    ("half a pair as bytes", b'{"model": "\xed\xa0\x80"}', {}, 400),
    ("gzip", b"\x1f\x8b", {"content-encoding": "gzip"}, 415),
)


@pytest.mark.parametrize("path", [*JSON_ROUTES, "/detokenize"])
@pytest.mark.parametrize(("name", "content", "more", "status"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_bodies_that_cannot_be_read(
    served: Served, path: str, name: str, content: bytes, more: dict[str, str], status: int
) -> None:
    answer = served.post(path, content=content, headers={"content-type": "application/json", **more})
    error = refused(answer, None, status)
    assert error["code"] == status
    assert "Traceback" not in answer.text
    assert answer.json().get("type") == ("error" if path.startswith("/v1/messages") else None)


def test_wide_bodies_are_not_deep(served: Served) -> None:
    wide = body(tools=[{"a": [{}]}] * 500)
    assert served.post("/v1/chat/completions", wide).status_code == 200
    level: Any = {}
    for _ in range(120):
        level = [level]
    assert served.post("/v1/chat/completions", body(tools=level)).status_code == 200


def test_null_details_are_as_if_absent(served: Served) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,", "detail": None}}
    result = {"role": "tool", "content": [image]}
    for messages in ([{"role": "user", "content": [image]}], [result], [[{"role": "user", "content": [image]}]]):
        assert served.post("/v1/chat/completions", {"model": MODEL, "messages": messages}).status_code == 200
        assert "detail" not in json.dumps(served.body)
    part = {"type": "input_image", "image_url": "data:,", "detail": None}
    for item in ({"role": "user", "content": [part]}, {"type": "function_call_output", "output": [part]}):
        assert served.post("/v1/responses", {"model": MODEL, "input": [item]}).status_code == 200
        assert "detail" not in json.dumps(served.body)
    kept = {"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}}
    served.post("/v1/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": [kept]}]})
    assert served.body["messages"][0]["content"] == [kept]


def test_budgets_that_this_server_cannot_honour(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(CONFIG, None, monkeypatch, verified=False, findings=[VISUAL_OFF], kv_findings=[KV_OFF])
    refused(served.post("/v1/chat/completions", body(pruning=BUDGET)), "pruning.visual")
    refused(served.post("/v1/chat/completions", body(pruning=KV)), "pruning.kv")
    assert served.post("/v1/chat/completions", body()).status_code == 200


def test_beam_search_and_eviction_exclude_each_other(served: Served) -> None:
    refused(served.post("/v1/completions", body(pruning=KV, use_beam_search=True)), "pruning.kv")
    assert served.post("/v1/completions", body(pruning=BUDGET, use_beam_search=True)).status_code == 200


@pytest.mark.parametrize("path", FORMS)
def test_forms(served: Served, path: str) -> None:
    files = {"file": ("a.wav", b"RIFF@pruning\x00", "audio/wav")}
    data = {"model": MODEL, "pruning": json.dumps(KV)}
    assert served.post(path, data=data, files=files).status_code == 200
    assert served.context is not None
    assert served.context.decision is not None
    assert served.context.decision.kv is not None
    assert served.context.decision.kv.keep == "0.5"
    refused(served.post(path, data={**data, "pruning": '{"kv": {"keep": 7}}'}, files=files), "pruning.kv.keep")
    refused(served.post(path, data={**data, "pruning": "fast"}, files=files), "pruning.visual")
    refused(served.post(path, data={**data, "pruning": "slow"}, files=files), "pruning")
    assert served.post(path, data={"model": MODEL}, files=files).status_code == 200
    headers = {"content-type": "multipart/form-data"}
    refused(served.post(path, content=b"nothing", headers=headers), None)


@pytest.mark.parametrize("name", ["/v1/chat/completions", "/v1/completions", "/v1/messages"])
def test_vllm_makes_its_ids_from_ours_where_the_client_sent_none(served: Served, name: str) -> None:
    answer = served.post(name, body())
    assert served.headers["x-request-id"] == answer.headers["x-request-id"]
    served.post(name, body(request_id="mine"))
    assert "x-request-id" not in served.headers
    answer = served.post(name, body(), headers={"x-request-id": "theirs"})
    assert served.headers["x-request-id"] == answer.headers["x-request-id"] == "theirs"


def test_a_route_honours_something_or_nothing() -> None:
    assert not Route().honours
    assert all(route.honours for route in HONOURING.values())


@pytest.mark.parametrize("path", [path for path in VISUAL if path != "/inference/v1/generate"])
def test_fields_of_another_route_change_no_budget(served: Served, path: str) -> None:
    for more in ({"token_ids": []}, {"token_ids": [1], "sampling_params": {"n": 1}}):
        assert served.post(path, body(pruning=BUDGET, **more)).status_code == 200
        assert keep(served) == "0.5", more


@pytest.mark.parametrize("path", VISUAL)
def test_a_repeated_content_type_is_read_as_the_routes_read_it(served: Served, path: str) -> None:
    raw = json.dumps(body(pruning={"visual": {"keep": 7}}))
    for last in ("text/plain", "multipart/form-data", ""):
        headers = [("content-type", "application/json"), ("content-type", last)]
        refused(served.post(path, content=raw, headers=headers), "pruning.visual.keep")
    headers = [("content-type", "text/plain"), ("content-type", "application/json")]
    assert served.post(path, content=raw, headers=headers).status_code == 200
