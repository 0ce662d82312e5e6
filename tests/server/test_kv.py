"""KV budgets over HTTP: what is reported is what the scheduler did."""

from __future__ import annotations

import time
from typing import Any

import httpx
import openai
import pytest

from vllm_prune import catalogue

from .media import image_part, png, user

PARTS = [image_part(png(168, 196, 5)), image_part(png(140, 168, 6))]
KV = {"keep": 0.2, "buffer": 16}


def ask(client: openai.OpenAI, model: str, pruning: Any, tokens: int = 12, **more: Any) -> Any:
    return client.chat.completions.create(
        model=model,
        messages=user(PARTS),
        max_tokens=tokens,
        extra_body={"pruning": pruning, "ignore_eos": True},
        **{"temperature": 0, **more},
    )


@pytest.mark.parametrize("strategy", catalogue.KV.names())
def test_every_strategy_reports_one_compaction(client: openai.OpenAI, model: str, strategy: str) -> None:
    answer = ask(client, model, {"kv": {**KV, "strategy": strategy}})
    prompt = answer.usage.prompt_tokens
    found = answer.usage.pruning["kv"]
    freed = found.pop("freed_blocks")
    assert found == {
        "strategy": strategy,
        "prompt_tokens": prompt,
        "kept_tokens": prompt // 5,
        "evicted_tokens": prompt - prompt // 5,
        "compactions": 1,
    }
    assert freed > 0
    assert answer.usage.pruning["visual"]["strategy"] == "none"
    assert getattr(answer, "kv_transfer_params", None) is None


def test_visual_and_kv_together_stream_the_same_usage(client: openai.OpenAI, model: str) -> None:
    pruning = {"visual": {"keep": 0.5, "strategy": "uniform"}, "kv": KV}
    plain = ask(client, model, pruning, 60)
    chunks = list(ask(client, model, pruning, 60, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.pruning == plain.usage.pruning
    found = plain.usage.pruning
    assert found["visual"]["kept_tokens"] * 2 == found["visual"]["input_tokens"]
    assert found["kv"]["prompt_tokens"] == plain.usage.prompt_tokens
    # 12 rows are kept; every 17th decoded row brings them back to that.
    assert found["kv"]["compactions"] > 2
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content


def test_off_and_short_requests(client: openai.OpenAI, model: str) -> None:
    for off in (None, {"kv": None}, {"kv": {"keep": 1.0}}, {"kv": {"strategy": "none"}}):
        assert ask(client, model, off).usage.pruning["kv"] is None
    one = ask(client, model, {"kv": KV}, 1).usage.pruning["kv"]
    assert (one["compactions"], one["evicted_tokens"], one["freed_blocks"]) == (0, 0, 0)
    roomy = ask(client, model, {"kv": {"max_tokens": 4000}}).usage.pruning["kv"]
    assert roomy["kept_tokens"] == roomy["prompt_tokens"]
    assert roomy["compactions"] == 0


def test_choices_add_up(client: openai.OpenAI, model: str) -> None:
    answer = ask(client, model, {"kv": {**KV, "strategy": "streaming"}}, n=2, temperature=1)
    found = answer.usage.pruning["kv"]
    assert found["compactions"] == 2
    assert found["evicted_tokens"] == 2 * (found["prompt_tokens"] - found["kept_tokens"])


def test_metrics_equal_usage(server: Any, client: openai.OpenAI, model: str) -> None:
    keys = {"evicted_tokens": "tokens_evicted", "freed_blocks": "blocks_freed", "compactions": "compactions"}
    before = {key: server.metric(f"vllm_prune_kv_{name}_total") for key, name in keys.items()}
    timed = server.metric("vllm_prune_compaction_seconds_count")
    found = ask(client, model, {"kv": {**KV, "strategy": "snapkv"}}, 60).usage.pruning["kv"]
    for key, name in keys.items():
        assert server.metric(f"vllm_prune_kv_{name}_total") - before[key] == found[key]
    assert server.metric("vllm_prune_compaction_seconds_count") - timed == found["compactions"]
    # Routers read this gauge; nothing runs now, so nothing is held.
    assert server.metric("vllm:kv_cache_usage_perc") == 0


def test_the_usage_gauge_falls_with_eviction(server: Any, client: openai.OpenAI, model: str) -> None:
    """Routers read it: it has to say what is held while a request decodes, not what its text would need."""
    parts, held = [image_part(png(420, 560, 8))], {}
    for name, pruning in (("full", {"kv": None}), ("evicted", {"kv": {"keep": 0.2, "buffer": 64}})):
        with client.chat.completions.create(
            model=model, messages=user(parts), max_tokens=6000, stream=True, temperature=0,
            extra_body={"pruning": pruning, "ignore_eos": True},
        ) as stream:  # fmt: skip
            for number, _ in enumerate(stream):
                if number == 40:
                    held[name] = server.metric("vllm:kv_cache_usage_perc")
                    break
        while server.metric("vllm:num_requests_running"):
            time.sleep(0.1)
    assert 0 < held["evicted"] < 0.5 * held["full"]


def test_completions_and_responses(server: Any, client: openai.OpenAI, model: str) -> None:
    text = "one two three four five six seven eight nine ten eleven twelve"
    body = {"pruning": {"kv": {"keep": 0.5, "strategy": "keydiff"}}, "ignore_eos": True}
    plain = client.completions.create(model=model, prompt=[text, text + text], max_tokens=6, extra_body=body)
    assert plain.usage.pruning["kv"]["compactions"] == 2
    answer = httpx.post(
        f"{server.url}/v1/responses",
        json={"model": model, "input": text, "max_output_tokens": 6, "pruning": body["pruning"], "ignore_eos": True},
        timeout=120,
    ).json()
    assert answer["usage"]["pruning"]["kv"]["compactions"] == 1


def test_the_wire_form_is_not_for_clients(server: Any, model: str) -> None:
    body = {"model": model, "prompt": "hello", "vllm_xargs": {"vllm_prune_kv": "{}"}}
    refused = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "vllm_xargs"
    beam = {"model": model, "prompt": "hello", "use_beam_search": True, "n": 2, "pruning": {"kv": KV}}
    refused = httpx.post(f"{server.url}/v1/completions", json=beam, timeout=60)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "pruning.kv"
