"""What clients write into fields that reach the engine: media uuids, extra arguments, processor options, features."""

from __future__ import annotations

import json
import uuid
from typing import Any

import httpx
import pytest

from vllm_prune.budget.canonical import KEY as OPTIONS_KEY
from vllm_prune.budget.kv import KEY, KvSpec

from .conftest import DEMO
from .guarded import ALPHA, ALPHA_TOO, BETA, Guarded
from .media_files import data_url, image_part, png, text_part

# 4, 20 and 100 visual tokens.
SIZES = {4: (56, 56), 20: (112, 140), 100: (280, 280)}
IMAGE_TOKEN = json.loads((DEMO / "config.json").read_text())["image_token_id"]
WIRE = KvSpec("snapkv", keep="0.5").wire()


def named(name: str, tokens: int | None = None, seed: int = 0) -> dict[str, Any]:
    """A picture of so many tokens with a uuid, or the uuid alone."""
    if tokens is None:
        return {"type": "image_url", "image_url": None, "uuid": name}
    return {**image_part(png(*SIZES[tokens], seed)), "uuid": name}


def tokens_of(answer: httpx.Response) -> int:
    assert answer.status_code == 200, answer.text
    visual: dict[str, int] = answer.json()["usage"]["pruning"]["visual"]
    return visual["input_tokens"]


def refusal(answer: httpx.Response, param: str) -> str:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    return str(error["message"])


def alive(guarded: Guarded) -> None:
    """The engine lives and answers."""
    assert guarded.get("/health").status_code == 200
    assert guarded.chat(ALPHA).status_code == 200


def test_a_uuid_is_a_tenants_own(guarded: Guarded) -> None:
    name = str(uuid.uuid4())
    assert tokens_of(guarded.chat(ALPHA, [named(name, 20)])) == 20
    for key, known in ((ALPHA_TOO, True), (BETA, False)):
        answer = guarded.chat(key, [named(name)], pruning={"visual": None})
        if known:
            assert tokens_of(answer) == 20
        else:
            assert name in refusal(answer, "uuid")
    # Nor does one tenant's picture take the place of another's.
    assert tokens_of(guarded.chat(BETA, [named(name, 4)])) == 4
    assert tokens_of(guarded.chat(ALPHA, [named(name, 20)])) == 20
    assert tokens_of(guarded.chat(ALPHA, [named(name)])) == 20


def test_a_uuid_names_one_picture(guarded: Guarded) -> None:
    name = str(uuid.uuid4())
    text = refusal(guarded.chat(ALPHA, [named(name, 20), named(name, 4)], pruning={"visual": {"keep": 0.5}}), "uuid")
    assert name in text
    assert "choose a new one" in text
    assert "another image" in refusal(guarded.chat(ALPHA, [named(name, 20, seed=1)]), "uuid")
    # The same picture twice is no contradiction.
    twice = guarded.chat(ALPHA, [named(name, 20), named(name, 20)], pruning={"visual": {"keep": 0.5}})
    visual = twice.json()["usage"]["pruning"]["visual"]
    assert (visual["input_tokens"], visual["kept_tokens"]) == (40, 20)


def test_a_uuid_alone_under_a_new_budget_says_what_to_do(guarded: Guarded) -> None:
    name = str(uuid.uuid4())
    assert tokens_of(guarded.chat(ALPHA, [named(name, 20)])) == 20
    for budget, word in (({"keep": 0.5}, "keep 0.5"), ({"max_tokens": 7}, "max_tokens 7")):
        text = refusal(guarded.chat(ALPHA, [named(name)], pruning={"visual": budget}), "uuid")
        for part in (name, word, "send the item again"):
            assert part in text
    assert tokens_of(guarded.chat(ALPHA, [named(name, 20)], pruning={"visual": {"keep": 0.5}})) == 20
    assert tokens_of(guarded.chat(ALPHA, [named(name)], pruning={"visual": {"keep": 0.5}})) == 20


@pytest.mark.parametrize("wire", [{"keep": 0.02}, {}, None, "x", {"image": 1}])
def test_processor_options_pass_no_limits(guarded: Guarded, wire: Any) -> None:
    """On a server that trusts clients with the processor's options."""
    for more in ({}, {"pruning": {"visual": {"keep": 0.5}}}):
        options = {OPTIONS_KEY: wire}
        answer = guarded.chat(ALPHA, [named(str(uuid.uuid4()), 20)], mm_processor_kwargs=options, **more)
        assert "set by the server" in refusal(answer, "mm_processor_kwargs")


EXTRA = [{KEY: WIRE}, {KEY: "{"}, {KEY: ""}, {KEY: 5}, {KEY: ["x"]}, {KEY: '{"strategy": "snapkv"}'}]


@pytest.mark.parametrize("extra", EXTRA, ids=str)
def test_extra_arguments_do_not_reach_the_engine(guarded: Guarded, extra: dict[str, Any]) -> None:
    for pruning in ({}, {"pruning": {"kv": {"keep": 0.5, "strategy": "snapkv"}}}):
        answer = guarded.chat(ALPHA, [text_part("hello")], vllm_xargs=extra, **pruning)
        assert "set by the server" in refusal(answer, "vllm_xargs")
    for path, content in (
        ("/v1/completions", {"prompt": "a", "max_tokens": 1, "vllm_xargs": extra}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "vllm_xargs": extra}),
        ("/inference/v1/generate", {"token_ids": [1, 2], "sampling_params": {"max_tokens": 1, "extra_args": extra}}),
    ):
        answer = guarded.post(path, ALPHA, {"model": guarded.model, **content})
        assert answer.status_code == 400, (path, answer.text)
    alive(guarded)


def test_a_kv_budget_is_kept_whatever_the_shape_of_the_request(guarded: Guarded) -> None:
    """Several choices, several prompts, a stream; and the client's own extra arguments stay."""
    words = "some words that fill the cache " * 12
    body = {"model": guarded.model, "prompt": [words, words + "more"], "max_tokens": 2, "n": 2, "ignore_eos": True,
            "pruning": {"kv": {"max_tokens": 16, "strategy": "snapkv"}}, "vllm_xargs": {"mine": 1}}  # fmt: skip
    answer = guarded.post("/v1/completions", ALPHA, body)
    assert answer.status_code == 200, answer.text
    kv = answer.json()["usage"]["pruning"]["kv"]
    assert (kv["strategy"], kv["kept_tokens"], kv["compactions"]) == ("snapkv", 16, 4)
    streamed = guarded.post(
        "/v1/completions", ALPHA, {**body, "stream": True, "stream_options": {"include_usage": True}}
    )
    last = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")][-1]
    assert last["usage"]["pruning"]["kv"]["compactions"] == 4
    beams = guarded.post("/v1/completions", ALPHA, {**body, "use_beam_search": True})
    assert "beam search" in refusal(beams, "pruning.kv")


def features(**changes: Any) -> dict[str, Any]:
    base = {"mm_hashes": {"image": ["a"]}, "mm_placeholders": {"image": [{"offset": 0, "length": 2}]}}
    return {**base, **changes}


PICTURE = data_url("image/png", png(56, 56))
HOSTILE: list[dict[str, Any]] = [
    {"features": features()},
    {"features": features(kwargs_data={"image": ["!!!"]})},
    {"features": features(kwargs_data={"image": ["gaFhoWLA"]})},
    {"features": features(mm_placeholders={"image": [{"offset": 10**9, "length": 10**9}]})},
    {"features": features(mm_hashes={"sound": ["a"]}, mm_placeholders={"sound": [{"offset": 0, "length": 1}]})},
    {"content_parts": [{"type": "image_url", "url": None, "uuid": "never sent"}]},
    {"content_parts": [{"type": "image_url", "url": PICTURE, "uuid": 7}]},
    {"content_parts": [{"type": "image_url", "url": PICTURE, "uuid": {"a": []}}]},
    {"content_parts": [{"type": "image_url", "url": 5}]},
    {"content_parts": [{"type": "image_url", "url": ["x"], "uuid": "x"}]},
]


@pytest.mark.parametrize("more", HOSTILE, ids=lambda more: json.dumps(more)[:60])
def test_processed_media_of_strangers_are_refused(guarded: Guarded, more: dict[str, Any]) -> None:
    content = {"model": guarded.model, "token_ids": [1, 2, 3], "sampling_params": {"max_tokens": 1}, **more}
    answer = guarded.post("/inference/v1/generate", ALPHA, content)
    assert answer.status_code == 400, answer.text
    assert "got 'int'" not in answer.text
    alive(guarded)


def test_pictures_of_the_token_route_are_bound_as_well(guarded: Guarded) -> None:
    name = str(uuid.uuid4())

    def generate(key: str, url: str | None) -> httpx.Response:
        part = {"type": "image_url", "url": url, "uuid": name}
        content = {"model": guarded.model, "token_ids": [1, IMAGE_TOKEN, 2], "content_parts": [part]}
        return guarded.post("/inference/v1/generate", key, {**content, "sampling_params": {"max_tokens": 1}})

    assert generate(ALPHA, PICTURE).status_code == 200
    assert generate(ALPHA, None).status_code == 200
    assert name in refusal(generate(BETA, None), "uuid")
    assert "another image" in refusal(generate(ALPHA, data_url("image/png", png(56, 56, seed=2))), "uuid")
