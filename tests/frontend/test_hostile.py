"""Whatever a client sends to any route: no 500, and no words of Python's or a library's. With no engine."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import httpx
import pytest

from vllm_prune_server.middleware.faults import INTERNAL

from .messages import IMAGE, message

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

ARGUMENTS = ["--enable-scale-out"]
URL = IMAGE["image_url"]["url"]
CHAT = message("hi", IMAGE)
CLAUDE = [
    {
        "role": "user",
        "content": [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": URL.partition(",")[2]}},
            {"type": "text", "text": "hi"},
        ],
    }
]
INPUT = [
    {"role": "user", "content": [{"type": "input_image", "image_url": URL}, {"type": "input_text", "text": "hi"}]},
    {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]},
]
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": CHAT, "max_tokens": 2},
    "/v1/chat/completions/batch": {"messages": [CHAT], "max_tokens": 2},
    "/v1/completions": {"prompt": ["hi", "ho"], "max_tokens": 2},
    "/v1/responses": {"input": INPUT, "max_output_tokens": 2},
    "/v1/messages": {"messages": CLAUDE, "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": CLAUDE},
    "/invocations": {"messages": CHAT, "max_tokens": 2},
    "/tokenize": {"messages": CHAT},
    "/detokenize": {"tokens": [1, 2]},
    "/inference/v1/generate": {"token_ids": [1, 2], "sampling_params": {"max_tokens": 2, "stop": ["x"]}},
    "/v1/chat/completions/render": {"messages": CHAT},
    "/v1/completions/render": {"prompt": "hi"},
    "/v1/responses/render": {"input": INPUT},
    "/v1/messages/render": {"messages": CLAUDE, "max_tokens": 2},
    "/v1/chat/completions/derender": {"choices": [{"token_ids": [1]}]},
    "/v1/completions/derender": {"choices": [{"token_ids": [1]}]},
    "/generative_scoring": {"query": "x", "items": ["a"], "label_token_ids": [1, 2]},
    "/v1/systemone": {},
}
ODD: list[Any] = [
    None, 0, -1, 1.5, True, "", "x", [], {}, [[]], [{}], [None], {"a": 1}, "\ud800", "\x00", 10**30, 1e308,
    float("nan"), [1], ["x"], "a" * 2000, {"type": "x"}, {"type": None},
]  # fmt: skip
# Without those for which the engine behind these tests has no answer: log-probabilities and beams.
FIELDS = """
    stop logit_bias response_format tools tool_choice chat_template_kwargs mm_processor_kwargs media_io_kwargs
    vllm_xargs structured_outputs stream_options n seed min_tokens truncate_prompt_tokens cache_salt priority
    kv_transfer_params allowed_token_ids bad_words stop_token_ids request_id echo suffix system thinking metadata
    instructions previous_response_id reasoning text include truncation background store user temperature top_p
    top_k repetition_penalty documents add_generation_prompt continue_final_message pruning model stream
    return_token_strs features content_parts token_ids sampling_params reasoning_effort max_tokens
    ec_transfer_params prompt_embeds length_penalty skip_special_tokens chat_template messages input prompt
""".split()  # noqa: SIM905
RAW = [b"", b"null", b"[]", b"1", b'"x"', b"{}", b"{", b'{"model": "\xff"}', b"\xff\xfe{\x00}\x00", b"[" * 5000]
HEADERS = {"content-type": "application/json"}


def mutated(body: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """The body with one value anywhere in it replaced."""
    body = copy.deepcopy(body)
    places: list[tuple[Any, Any]] = []
    nodes: list[Any] = [body]
    while nodes:
        node = nodes.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                nodes.append(node[key])
    if places:
        node, key = chance.choice(places)
        node[key] = chance.choice(ODD)
    return body


def bodies(path: str, chance: random.Random) -> list[bytes]:
    good = GOOD[path]
    odd = [{**good, name: value} for name in FIELDS for value in chance.sample(ODD, 2)]
    odd += [mutated(good, chance) for _ in range(50)]
    # Work in bounds: the engine behind these tests answers as many tokens as it is asked for.
    kept = [body for body in odd if not (isinstance(body.get("n"), int) and body["n"] > 4)]
    return [*RAW, *(json.dumps(body).encode() for body in kept)]


UNANSWERED = ("/v1/systemone", "/generative_scoring")
"""Routes that need log-probabilities, which the core of these tests has not; vLLM 0.33 says so with a 500."""


def fault(answer: httpx.Response) -> str | None:
    """What is wrong with an answer, None when nothing is."""
    if answer.status_code >= 500 and answer.status_code != 501:
        return f"{answer.status_code}"
    if answer.status_code >= 400:
        error = answer.json().get("error")
        if not isinstance(error, dict) or not error.get("message"):
            return "no error object"
        if INTERNAL.search(error["message"]):
            return "words of a library's"
    return None


@pytest.mark.parametrize("path", GOOD)
async def test_nothing_that_clients_send_is_a_fault_of_the_server(client: httpx.AsyncClient, path: str) -> None:
    chance = random.Random(path)
    found: dict[str, str] = {}
    for content in bodies(path, chance):
        answer = await client.post(path, content=content, headers=HEADERS)
        if path in UNANSWERED and "No logprobs available" in answer.text:
            continue
        if (wrong := fault(answer)) is not None:
            found.setdefault(f"{wrong}: {answer.text[:150]}", content[-300:].decode(errors="replace"))
    assert not found, "\n".join(f"{wrong} <- {content}" for wrong, content in found.items())


async def test_the_good_ones_are_answered(client: httpx.AsyncClient) -> None:
    for path, body in GOOD.items():
        if path not in UNANSWERED and "derender" not in path:
            answer = await client.post(path, json={"model": "demo", **body})
            assert answer.status_code == 200, (path, answer.text)
