"""API keys, and what differs from tenant to tenant."""

from __future__ import annotations

import hmac
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from typer.testing import CliRunner

from vllm_prune.cli.main import app
from vllm_prune.cli.serve import LaunchError, launch
from vllm_prune.config.load import ENV
from vllm_prune.config.tenants import Rate, Tenant, hash_key
from vllm_prune_server.admission.accounts import Accounts, Bucket
from vllm_prune_server.openai.errors import Refusal

from .conftest import DEMO
from .guarded import ALPHA, ALPHA_TOO, BETA, CONFIG, GAMMA, SMALL, Guarded, refused
from .media_files import text_part

PATHS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/models",
    "/v1/pruning/strategies",
    "/v1/no-such-route",
    "/inference/v1/generate",
    "/invocations",
    "/tokenize",
]


@pytest.mark.parametrize("path", PATHS)
def test_every_route_needs_a_key(guarded: Guarded, path: str) -> None:
    for key in (None, "key-of-nobody-0123456789abcdef", ALPHA[:-1], hash_key(ALPHA)):
        for answer in (guarded.get(path, key), guarded.post(path, key, guarded.body())):
            error = refused(answer, 401, "invalid_api_key")
            assert error["type"] == "invalid_request_error"
            assert answer.headers["www-authenticate"] == "Bearer"


def test_probes_and_metrics_need_none(guarded: Guarded) -> None:
    for path in ("/health", "/health/live", "/health/ready", "/health/startup", "/metrics", "/version", "/docs"):
        assert guarded.get(path).status_code == 200, path
    for path in ("/healthy", "/metricsx/v1/chat/completions", "//v1/models", "/health/../v1/models"):
        assert guarded.get(path).status_code in (401, 404), path
    assert guarded.server.metric("vllm_prune_rejections_total", reason="unauthorized") > 0


def test_other_schemes_and_two_headers_are_no_key(guarded: Guarded) -> None:
    url = f"{guarded.url}/v1/models"
    for given in ([f"Basic {ALPHA}"], [ALPHA], ["Bearer"], [f"Bearer {ALPHA}", f"Bearer {BETA}"], ["Bearer \xff"]):
        sent = [("authorization", value.encode("latin-1")) for value in given]
        assert httpx.get(url, headers=sent, timeout=30).status_code == 401
    assert httpx.get(url, headers={"authorization": f"bearer {ALPHA}"}, timeout=30).status_code == 200


def test_the_sdk_raises_what_it_should(guarded: Guarded) -> None:
    client = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="key-of-nobody", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"
    assert client.with_options(api_key=BETA).models.list().data


def test_every_known_hash_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    real = hmac.compare_digest

    def watched(known: bytes, asked: bytes) -> bool:
        compared.append(known)
        return real(known, asked)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    hashes = [hash_key(name * 20) for name in "abc"]
    accounts = Accounts({key: Tenant(name=f"t{i}") for i, key in enumerate(hashes)})
    for key, name in (("a", "t0"), ("c", "t2")):
        compared.clear()
        found = accounts.of([(b"authorization", f"Bearer {key * 20}".encode())])
        assert found.tenant.name == name
        assert compared == [known.encode() for known in hashes]
    with pytest.raises(Refusal):
        accounts.of([(b"authorization", b"Bearer dddd")])


def usage(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["usage"]
    return found


def test_presets_and_limits_are_the_tenants(guarded: Guarded) -> None:
    visual = usage(guarded.chat(ALPHA, [SMALL]))["pruning"]["visual"]
    assert visual == {"strategy": "none", "input_tokens": 20, "kept_tokens": 20}
    visual = usage(guarded.chat(BETA, [SMALL]))["pruning"]["visual"]
    assert visual == {"strategy": "uniform", "input_tokens": 20, "kept_tokens": 5}
    for key, low, high in ((ALPHA, 2, 18), (BETA, 4, 10)):
        for keep, kept in ((0.01, low), (0.9, high)):
            found = usage(guarded.chat(key, [SMALL], pruning={"visual": {"keep": keep}}))["pruning"]
            assert found["visual"]["kept_tokens"] == kept
    # Also where `pruning` cannot be written.
    part = {"type": "image", "source": {"type": "base64", "media_type": "image/png"}}
    part["source"]["data"] = SMALL["image_url"]["url"].partition(",")[2]
    content = {"model": guarded.model, "max_tokens": 2, "messages": [{"role": "user", "content": [part]}]}
    tokens = [guarded.post("/v1/messages", key, content).json()["usage"]["input_tokens"] for key in (ALPHA, BETA)]
    assert tokens[0] - tokens[1] == 15


def test_prefix_caches_are_not_shared(guarded: Guarded) -> None:
    prompt = [text_part(f"{time.time_ns()} is a number. " + "many words follow it here. " * 30)]

    def cached(key: str, **more: Any) -> int:
        return int(usage(guarded.chat(key, prompt, **more))["prompt_tokens_details"]["cached_tokens"] or 0)

    assert [cached(ALPHA), cached(BETA)] == [0, 0]
    hit = cached(ALPHA)
    assert hit >= 96
    assert cached(ALPHA_TOO) == hit
    assert cached(BETA) == hit
    # The client's own salt separates further, and never opens another tenant's cache.
    assert [cached(ALPHA, cache_salt="mine"), cached(BETA, cache_salt="mine")] == [0, 0]
    assert cached(ALPHA, cache_salt="mine") == hit
    content = {"model": guarded.model, "prompt": prompt[0]["text"], "max_tokens": 1}
    counts = []
    for key in (ALPHA, BETA, ALPHA):
        found = usage(guarded.post("/v1/completions", key, content))
        counts.append((found["prompt_tokens_details"] or {}).get("cached_tokens") or 0)
    assert counts[:2] == [0, 0]
    assert counts[2] >= 96


def test_a_rate_is_kept(guarded: Guarded) -> None:
    """The tenant of the environment."""
    start, taken = time.monotonic(), 0
    while (limited := guarded.chat(GAMMA)).status_code == 200:
        taken += 1
        # Two at once, and one more for every two seconds that a slow machine takes.
        assert taken <= 2 + (time.monotonic() - start) / 2
    assert taken >= 2
    error = refused(limited, 429, "rate_limit_exceeded")
    assert error["type"] == "rate_limit_error"
    assert limited.headers["retry-after"] in ("1", "2")
    assert guarded.get("/v1/models", GAMMA).status_code == 200
    time.sleep(int(limited.headers["retry-after"]))
    assert guarded.chat(GAMMA).status_code == 200
    assert guarded.server.metric("vllm_prune_rejections_total", reason="tenant_rate") == 1


def test_concurrency_is_kept(guarded: Guarded) -> None:
    guarded.idle()
    with guarded.hold(BETA), guarded.hold(BETA) as second:
        refused(guarded.chat(BETA), 429, "rate_limit_exceeded")
        assert guarded.chat(ALPHA).status_code == 200
        second.close()
        guarded.server.metric("vllm_prune_inflight_requests")
        for _ in range(20):
            if (answer := guarded.chat(BETA)).status_code == 200:
                break
            time.sleep(0.1)
        assert answer.status_code == 200
    guarded.idle()
    # One after the other is never two at once.
    tenant = [guarded.chat(BETA).status_code for _ in range(10)]
    assert tenant == [200] * 10


def test_the_bucket_refills() -> None:
    now = [0.0]
    bucket = Bucket(Rate(requests_per_second=2, burst=3), lambda: now[0])
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]
    now[0] = 0.5
    assert [bucket.take(), bucket.take()] == [0, 0.5]
    now[0] = 100
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]


def test_keys_of_one_tenant_share_its_account() -> None:
    tenant = Tenant(name="t", max_inflight_requests=1)
    accounts = Accounts({hash_key("a" * 20): tenant, hash_key("b" * 20): tenant})
    first, second = (accounts.of([(b"authorization", f"Bearer {key * 20}".encode())]) for key in "ab")
    with ExitStack() as exits:
        first.enter(exits)
        with pytest.raises(Refusal, match="1 requests of this API key"):
            second.enter(exits)
    second.enter(ExitStack())


def test_a_key_may_come_as_anthropics_clients_send_it() -> None:
    accounts = Accounts({hash_key("a" * 20): Tenant(name="t")})
    assert accounts.of([(b"x-api-key", b"a" * 20)]).tenant.name == "t"
    both = [(b"authorization", b"Bearer " + b"b" * 20), (b"x-api-key", b"a" * 20)]
    for headers in (both, [(b"x-api-key", b"")], [(b"x-api-key", b"a" * 20)] * 2, [(b"x-api-key", b"b" * 20)]):
        with pytest.raises(Refusal):
            accounts.of(headers)


def test_vllms_own_key_and_tenants_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "prune.yaml"
    config.write_text(CONFIG)
    monkeypatch.setenv(ENV, str(config))
    with pytest.raises(LaunchError, match="drop --api-key"):
        launch(str(DEMO), ["--api-key", "x"], str(config))
    monkeypatch.setenv("VLLM_API_KEY", "x")
    with pytest.raises(LaunchError, match="drop --api-key"):
        launch(str(DEMO), [], str(config))


def test_hash_key_prints_what_the_configuration_takes() -> None:
    found = CliRunner().invoke(app, ["hash-key"], input=f"{ALPHA}\n")
    assert (found.exit_code, found.stdout.strip()) == (0, hash_key(ALPHA))
    for bad in ("short\n", "\n", " " + ALPHA + "\n"):
        found = CliRunner().invoke(app, ["hash-key"], input=bad)
        assert found.exit_code == 2
        assert "sha256" not in found.output
