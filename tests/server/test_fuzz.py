"""Fuzzing the server over HTTP: whatever is sent, no 500 and no hang.

`VLLM_PRUNE_FUZZ_EXAMPLES` sets the number of examples per test; the default is a slice for every run of the suite.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error

from vllm_prune.catalogue import KV, VISUAL

from .media_files import image_part, png, user

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
EXAMPLES = int(os.environ.get("VLLM_PRUNE_FUZZ_EXAMPLES", "300"))
SECONDS = 60
TOKENS = 4
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
ROUTES = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/tokenize"),
    ("POST", "/v1/pruning/preview"),
    ("GET", "/v1/models"),
    ("GET", "/v1/pruning/strategies"),
    ("GET", "/v1/pruning/presets"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/health/startup"),
]

odd = st.sampled_from([0.5, 1, 1.0, 0.01, True, None, "0.5", [], {}])
numbers = st.one_of(st.floats(width=32), st.integers(-5, 5), st.integers(), odd)
names_of_strategies = st.one_of(
    st.sampled_from([*VISUAL.names(), *KV.names(), "stts", ""]), st.text(max_size=8), numbers
)
options = st.one_of(st.none(), numbers, st.dictionaries(st.sampled_from(["radius", "sinks", "alpha", "x"]), numbers))


def part(**more: Any) -> st.SearchStrategy[Any]:
    keys = {"strategy": names_of_strategies, "keep": numbers, "max_tokens": numbers, "options": options, **more}
    return st.one_of(st.none(), numbers, st.fixed_dictionaries({}, optional=keys))


fields = st.one_of(
    st.none(),
    st.text(max_size=10),
    st.fixed_dictionaries(
        {},
        optional={
            "visual": part(image=part(), video=part(), return_kept=numbers, extra=numbers),
            "kv": part(window=numbers, buffer=numbers),
            "other": numbers,
        },
    ),
)


@pytest.fixture(scope="module")
def http(server: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=SECONDS, trust_env=False) as client:
        yield client


@given(field=fields)
@settings(max_examples=8 * EXAMPLES)
def test_any_field_is_honoured_or_refused(http: httpx.Client, model: str, field: Any) -> None:
    body = {"model": model, "messages": user([image_part(png(112, 140))]), "max_tokens": TOKENS, "pruning": field}
    # Python's writer spells NaN and infinities, which JSON has no words for, and its readers take them.
    response = http.post("/v1/chat/completions", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 400), (field, response.text)
    if response.status_code == 400:
        assert response.json()["error"]["message"]
    else:
        usage = response.json()["usage"]["pruning"]
        assert 1 <= usage["visual"]["kept_tokens"] <= usage["visual"]["input_tokens"]
        assert not _holds(field, lambda value: isinstance(value, float) and not math.isfinite(value))


def _holds(node: Any, wrong: Any) -> bool:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return wrong(node) or any(_holds(child, wrong) for child in children)


@pytest.fixture(scope="module")
def openapi(server: Any) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_any_request_of_the_description(openapi: Any, model: str, method: str, path: str) -> None:
    @given(case=openapi[path][method].as_strategy())
    @settings(max_examples=EXAMPLES if method == "POST" else 3, suppress_health_check=list(HealthCheck))
    def send(case: Any) -> None:
        if isinstance(case.body, dict):
            # Work in bounds: a valid request may ask for as much as the context holds, or for many choices.
            case.body.update(dict.fromkeys(LENGTHS, TOKENS), model=model)
            for name in ("n", "best_of", "min_tokens", "use_beam_search"):
                case.body.pop(name, None)
        response = case.call(timeout=SECONDS)
        case.validate_response(response, checks=[not_a_server_error])

    send()


def test_the_description_knows_the_field(http: httpx.Client) -> None:
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["PruningField"]["additionalProperties"] is False
    for name in ("ChatCompletionRequest", "CompletionRequest", "ResponsesRequest"):
        assert schemas[name]["properties"]["pruning"]["anyOf"][0]["$ref"].endswith("/PruningField")
