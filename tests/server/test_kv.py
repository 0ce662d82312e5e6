"""KV budgets over HTTP: what is reported is what the scheduler did."""

from __future__ import annotations

import time
from typing import Any

import httpx
import openai
import pytest

from vllm_prune import catalogue

from .guarded import until
from .media_files import image_part, png, user

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


LAYERED = [name for name in catalogue.KV.names() if catalogue.KV.strategy_class(name).layered]


@pytest.mark.parametrize("strategy", LAYERED)
def test_strategies_by_depth_say_what_to_configure(client: openai.OpenAI, model: str, strategy: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, model, {"kv": {"keep": 0.2, "strategy": strategy}})
    assert error.value.param == "pruning.kv.strategy"
    assert "set kv.layer_groups" in error.value.message


GATED = [name for name in catalogue.KV.names() if "gates" in catalogue.KV.strategy_class(name).needs]


@pytest.mark.parametrize("strategy", GATED)
def test_strategies_with_gates_say_what_to_configure(client: openai.OpenAI, model: str, strategy: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, model, {"kv": {"keep": 0.2, "strategy": strategy}})
    assert error.value.param == "pruning.kv.strategy"
    assert f"weights: {{{strategy}: PATH}}" in error.value.message


@pytest.mark.parametrize("strategy", [name for name in catalogue.KV.names() if name not in (*LAYERED, *GATED)])
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


COUNTS = {"evicted_tokens": "tokens_evicted", "freed_blocks": "blocks_freed", "compactions": "compactions"}
TEXT = "what colour is the star ? " * 20
OFTEN = {"kv": {"strategy": "snapkv", "keep": 0.3, "buffer": 16}}


def counters(server: Any) -> dict[str, float]:
    """The metrics that usage names."""
    return {key: server.metric(f"vllm_prune_kv_{name}_total") for key, name in COUNTS.items()}


def idle(server: Any) -> None:
    """Wait until nothing runs, and a moment longer for what was to be counted."""
    until(lambda: server.metric("vllm:num_requests_running") == 0)
    time.sleep(0.5)


def whole_text(client: openai.OpenAI, model: str) -> str:
    """An answer long enough for several compactions."""
    body = {"pruning": OFTEN, "ignore_eos": True}
    answer = client.completions.create(model=model, prompt=TEXT, max_tokens=120, temperature=0, extra_body=body)
    return answer.choices[0].text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("place", [1, 60, 200])
def test_a_stop_string_reports_what_was_counted(
    server: Any, client: openai.OpenAI, model: str, stream: bool, place: int
) -> None:
    """The front end finds it while the engine works on."""
    text = whole_text(client, model)
    stop, before = text[place : place + 6], counters(server)
    more: Any = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    answer = client.completions.create(
        model=model, prompt=TEXT, max_tokens=120, temperature=0, stop=[stop],
        extra_body={"pruning": OFTEN, "ignore_eos": True}, **more,
    )  # fmt: skip
    usage = list(answer)[-1].usage if stream else answer.usage
    assert usage.completion_tokens < 120
    found = usage.pruning["kv"]
    assert found["prompt_tokens"] == usage.prompt_tokens
    assert place == 1 or found["compactions"] > 0
    # What the engine did before it heard of the end is in neither.
    idle(server)
    assert {key: now - before[key] for key, now in counters(server).items()} == {key: found[key] for key in COUNTS}


def test_choices_that_stop_apart_add_up(server: Any, client: openai.OpenAI, model: str) -> None:
    stop, before = whole_text(client, model)[60:64], counters(server)
    answer = client.completions.create(
        model=model, prompt=[TEXT, "one two three " * 30], max_tokens=60, n=2, temperature=1, stop=[stop],
        extra_body={"pruning": OFTEN, "ignore_eos": True},
    )  # fmt: skip
    found = answer.usage.pruning["kv"]
    assert found["compactions"] >= 4
    idle(server)
    assert {key: now - before[key] for key, now in counters(server).items()} == {key: found[key] for key in COUNTS}


def test_a_client_that_leaves_is_counted_up_to_then(server: Any, client: openai.OpenAI, model: str) -> None:
    before = counters(server)
    with client.completions.create(
        model=model, prompt=TEXT, max_tokens=7000, temperature=0, stream=True,
        extra_body={"pruning": OFTEN, "ignore_eos": True},
    ) as stream:  # fmt: skip
        for number, _ in enumerate(stream):
            if number == 60:
                break
    until(lambda: server.metric("vllm:num_requests_running") == 0)
    done = {key: now - before[key] for key, now in counters(server).items()}
    # Events hold several tokens where the client is slow; all of the answer would take 400.
    assert 2 <= done["compactions"] < 300
    assert done["evicted_tokens"] > done["compactions"]


@pytest.mark.parametrize(
    ("kv", "kept", "changed"),
    [
        ({"max_tokens": 1}, 3, {"max_tokens": (1, 3, "min_rows")}),
        ({"max_tokens": 2, "window": 4}, 3, {"max_tokens": (2, 3, "min_rows"), "window": (4, 1, "window_over_budget")}),
        ({"max_tokens": 3}, 3, {}),
        ({"max_tokens": 5, "window": 50}, 5, {"window": (50, 3, "window_over_budget")}),
        ({"max_tokens": 5}, 5, {}),
        ({"max_tokens": 60, "window": 50}, 60, {}),
    ],
)
def test_a_budget_that_cannot_be_had_is_said(
    server: Any, client: openai.OpenAI, model: str, kv: dict[str, Any], kept: int, changed: dict[str, Any]
) -> None:
    before = server.metric("vllm_prune_budget_clamped_total")
    body = {"pruning": {"kv": kv}, "ignore_eos": True}
    usage = client.completions.create(model=model, prompt=TEXT, max_tokens=8, n=2, extra_body=body).usage
    assert usage.pruning["kv"]["kept_tokens"] == kept
    said = {
        entry["param"]: (entry["requested"], entry["applied"], entry["reason"]) for entry in usage.pruning["clamped"]
    }
    assert said == {f"pruning.kv.{name}": entry for name, entry in changed.items()}
    assert server.metric("vllm_prune_budget_clamped_total") - before == len(changed)


def test_a_ratio_of_less_than_three_rows_is_said(client: openai.OpenAI, model: str) -> None:
    body = {"pruning": {"kv": {"keep": 1e-9}}, "ignore_eos": True}
    usage = client.completions.create(model=model, prompt=TEXT, max_tokens=8, extra_body=body).usage
    assert usage.pruning["kv"]["kept_tokens"] == 3
    assert usage.pruning["clamped"] == [
        {
            "param": "pruning.kv.keep",
            "requested": 1e-9,
            "applied": float(f"{3 / usage.prompt_tokens:.6g}"),
            "reason": "min_rows",
        }
    ]


def test_scoring_is_timed_apart_from_moving(server: Any, client: openai.OpenAI, model: str) -> None:
    names = ("vllm_prune_score_seconds", "vllm_prune_compaction_seconds")
    kinds = ("sum", "count")

    def read() -> dict[str, float]:
        labels = {names[0]: {"part": "kv", "strategy": "snapkv"}, names[1]: {}}
        return {f"{name}_{kind}": server.metric(f"{name}_{kind}", **labels[name]) for name in names for kind in kinds}

    before = read()
    whole_text(client, model)
    now = {key: value - before[key] for key, value in read().items()}
    assert now[f"{names[0]}_count"] == now[f"{names[1]}_count"] > 2
    assert 0 < now[f"{names[0]}_sum"] < 0.95 * now[f"{names[1]}_sum"]


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
        until(lambda: server.metric("vllm:num_requests_running") == 0)
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
