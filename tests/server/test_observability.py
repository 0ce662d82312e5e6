"""Request ids, log lines and spans of a real server, and that none of them tells what was asked."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.servers import EAGER, UNBOUND, Server

from ..deploy.expressions import scraped_names
from .collector import Collector, attributes
from .conftest import DEMO
from .guarded import until
from .media_files import image_part, png, user

pytestmark = pytest.mark.engine

KEY = "sk-never-in-a-log"
WORD = "zanzibarprompt"
IMAGE = [image_part(png(112, 140, 9))]
BUDGET = {"visual": {"keep": 0.5, "strategy": "uniform"}, "kv": {"strategy": "knorm", "max_tokens": 12, "buffer": 16}}


# The metrics that users may rely on, as samples.
CONTRACT = (
    *(f"visual_tokens_{which}_total" for which in ("input", "kept")),
    *(f"kv_{what}_total" for what in ("tokens_evicted", "blocks_freed", "compactions", "eviction_skipped")),
    *(f"{what}_total" for what in ("budget_clamped", "rejections", "media_rejected")),
    *(f"{what}_bucket" for what in ("request_visual_tokens", "keep_ratio", "score_seconds", "compaction_seconds")),
    *(f"media_{what}_seconds_count" for what in ("fetch", "decode")),
    "inflight_requests",
    "inflight_visual_tokens",
    "build_info",
)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("observed") / "server.log"


@pytest.fixture(scope="module")
def observed(collector: Collector, log: Path) -> Iterator[Server]:
    """A server with JSON lines, spans, an API key and vLLM's own request ids."""
    environment = {
        **UNBOUND,
        "VLLM_PRUNE_LOG_FORMAT": "json",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    arguments = [*EAGER, "--api-key", KEY, "--enable-request-id-headers", "--max-num-seqs", "8"]
    config = log.with_name("prune.yaml")
    config.write_text("media: {private: [127.0.0.0/8]}\n")
    with Server(DEMO, "prune", arguments, config=config, log=log, environment=environment) as running:
        yield running


def ask(server: Server, headers: dict[str, Any] | None = None, text: str = WORD, **more: Any) -> httpx.Response:
    body = {"messages": user(IMAGE, text), "max_tokens": 6, "ignore_eos": True, "temperature": 0, **more}
    sent = {"Authorization": f"Bearer {KEY}", **(headers or {})}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=sent, timeout=120)


def lines(log: Path) -> list[dict[str, Any]]:
    """JSON lines of the log; the launcher's own few lines are not."""
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def line_of(log: Path, request_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        found = [line for line in lines(log) if line.get("request_id") == request_id]
        if found:
            (one,) = found
            return one
        time.sleep(0.05)
    raise AssertionError(f"no line for {request_id}")


@pytest.mark.parametrize("given", ["a", "req-7.B_c:d", "x" * 128])
def test_a_good_id_comes_back_and_names_the_request(observed: Server, given: str) -> None:
    answer = ask(observed, {"X-Request-Id": given})
    assert answer.headers.get_list("x-request-id") == [given]
    assert answer.json()["id"] == f"chatcmpl-{given}"


@pytest.mark.parametrize("given", ["", "x" * 129, "two words", "-dash", "new\tline", 'quote"', "{}", "é".encode()])
def test_a_bad_id_is_replaced(observed: Server, given: str | bytes) -> None:
    answer = ask(observed, {"X-Request-Id": given})
    (found,) = answer.headers.get_list("x-request-id")
    assert re.fullmatch("[0-9a-f]{32}", found)
    assert answer.json()["id"] == f"chatcmpl-{found}"


def test_refusals_and_other_routes_have_an_id(observed: Server) -> None:
    wrong = ask(observed, {"Authorization": "Bearer wrong", "X-Request-Id": "refused-1"})
    missing = httpx.get(f"{observed.url}/v1/{WORD}?key={KEY}", headers={"X-Request-Id": "missing-1"})
    health = httpx.get(f"{observed.url}/health/live", headers={"X-Request-Id": "health-1"})
    allowed = {"Authorization": f"Bearer {KEY}", "X-Request-Id": "models-1"}
    plain = httpx.get(f"{observed.url}/v1/models", headers=allowed)
    found = [
        (answer.status_code, answer.headers.get_list("x-request-id")) for answer in (wrong, missing, health, plain)
    ]
    assert found == [(401, ["refused-1"]), (401, ["missing-1"]), (200, ["health-1"]), (200, ["models-1"])]


def test_two_ids_are_no_id(observed: Server) -> None:
    pairs = [("X-Request-Id", "one"), ("X-Request-Id", "two")]
    answer = httpx.get(f"{observed.url}/health", headers=pairs)
    assert answer.headers["x-request-id"] not in ("one", "two", "one, two")


def test_the_line_of_a_request_says_what_usage_says(observed: Server, log: Path) -> None:
    usage = ask(observed, {"X-Request-Id": "line-1"}, pruning=BUDGET).json()["usage"]
    line = line_of(log, "line-1")
    assert line["tokens"]["prompt"] == usage["prompt_tokens"]
    assert line["tokens"]["completion"] == usage["completion_tokens"] == 6
    assert line["pruning"] == {"visual": usage["pruning"]["visual"], "kv": usage["pruning"]["kv"]}
    assert line["budget"] == {
        "image": {"strategy": "uniform", "keep": 0.5},
        "video": {"strategy": "uniform", "keep": 0.5},
        "kv": {"strategy": "knorm", "max_tokens": 12},
    }
    told = {key: line[key] for key in ("method", "route", "status", "complete", "stream", "model", "finish_reasons")}
    assert told == {
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "complete": True,
        "stream": False,
        "model": "vllm-prune-demo",
        "finish_reasons": ["length"],
    }
    seconds = line["seconds"]
    timed = ("admission", "preprocess", "media_decode", "queued", "prefill", "decode")
    assert set(seconds) == {"total", "first_byte", *timed}
    assert min(seconds.values()) >= 0
    assert seconds["preprocess"] + seconds["queued"] + seconds["prefill"] + seconds["decode"] <= seconds["total"]


def test_streams_and_other_routes_are_counted_without_usage(observed: Server, log: Path) -> None:
    ask(observed, {"X-Request-Id": "line-2"}, stream=True, n=2, temperature=1)
    line = line_of(log, "line-2")
    assert line["stream"] is True
    assert line["tokens"]["completion"] == 12
    assert line["seconds"]["first_byte"] < line["seconds"]["total"]
    headers = {"Authorization": f"Bearer {KEY}"}
    for given, path, body, prompts in (
        ("line-3-4", "completions", {"prompt": [WORD, WORD + " again"], "max_tokens": 3}, 2),
        ("line-4", "responses", {"input": WORD, "max_output_tokens": 3}, 1),
    ):
        sent = {**headers, "X-Request-Id": given}
        answer = httpx.post(f"{observed.url}/v1/{path}", json={**body, "ignore_eos": True}, headers=sent, timeout=120)
        assert answer.status_code == 200
        line = line_of(log, given)
        assert line["tokens"]["completion"] == 3 * prompts
        assert line["route"] == f"/v1/{path}"


def test_an_id_used_twice_at_once_mixes_nothing(observed: Server, log: Path) -> None:
    sent = {"Authorization": f"Bearer {KEY}", "X-Request-Id": "twin"}
    body = {"messages": user([], WORD), "max_tokens": 600, "ignore_eos": True, "stream": True}
    counted = {**body, "stream_options": {"include_usage": True}}
    route = f"{observed.url}/v1/chat/completions"
    with httpx.Client(headers=sent, timeout=120) as client, client.stream("POST", route, json=counted) as long:
        events = long.iter_lines()
        next(events)
        short = client.post(route, json={**body, "max_tokens": 6, "stream": False})
        assert short.json()["usage"]["completion_tokens"] == 6
        # Not the number of events: vLLM joins what a slow client has not taken yet.
        *_, usage = (json.loads(event[6:]) for event in events if event.startswith("data: {"))
        assert usage["usage"]["completion_tokens"] == 600

    def counted() -> list[Any]:
        return [line.get("tokens", {}).get("completion") for line in lines(log) if line.get("request_id") == "twin"]

    until(lambda: len(counted()) >= 2)
    assert counted() == [6, 600]


def test_nothing_private_is_logged(observed: Server, log: Path) -> None:
    sent = {"X-Request-Id": "private-1"}
    assert ask(observed, sent, model="somebody-else").status_code == 404
    assert line_of(log, "private-1")["status"] == 404
    assert "model" not in line_of(log, "private-1")
    refused = ask(observed, {"X-Request-Id": "private-2"}, pruning={"visual": {"keep": 0.5, WORD: 1}})
    assert refused.status_code == 400
    assert line_of(log, "private-2")["rejected"] == "invalid_budget"
    headers = {"Authorization": f"Bearer {KEY}", "X-Request-Id": "private-3"}
    assert httpx.get(f"{observed.url}/v1/{WORD}?prompt={WORD}", headers=headers).status_code == 404
    assert "route" not in line_of(log, "private-3")
    ask(observed, {"Authorization": f"Bearer {WORD}", "X-Request-Id": "private-4"})
    assert line_of(log, "private-4")["status"] == 401
    far = {"type": "image_url", "image_url": {"url": f"http://nowhere.invalid/{WORD}.png"}}
    body = {"messages": user([far], WORD), "max_tokens": 2}
    sent = {"Authorization": f"Bearer {KEY}", "X-Request-Id": "private-5"}
    answer = httpx.post(f"{observed.url}/v1/chat/completions", json=body, headers=sent, timeout=60)
    assert answer.status_code == line_of(log, "private-5")["status"] == 400
    text = log.read_text()
    for private in (WORD, KEY, "base64", IMAGE[0]["image_url"]["url"][30:80]):
        assert private not in text


def fetch(server: Server, request_id: str) -> httpx.Response:
    """Ask about an image that the server has to fetch from this process."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.end_headers()
            self.wfile.write(png(112, 140, 9))

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as host:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        near = {"type": "image_url", "image_url": {"url": f"http://127.0.0.1:{host.server_port}/{WORD}.png"}}
        body = {"messages": user([near], WORD), "max_tokens": 2}
        sent = {"Authorization": f"Bearer {KEY}", "X-Request-Id": request_id}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=sent, timeout=60)
        host.shutdown()
    assert answer.status_code == 200, answer.text
    return answer


def test_a_fetch_is_a_stage(observed: Server, log: Path) -> None:
    fetch(observed, "fetch-1")
    seconds = line_of(log, "fetch-1")["seconds"]
    assert 0 < seconds["fetch"] <= seconds["preprocess"]
    assert WORD not in log.read_text()


def test_alerts_and_dashboards_name_what_is_exported(observed: Server) -> None:
    fetch(observed, "fetch-2")
    ask(observed, pruning=BUDGET)
    text = httpx.get(f"{observed.url}/metrics", timeout=60).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    names = {sample.name for sample in samples}
    assert not scraped_names() - names
    assert not {f"vllm_prune_{name}" for name in CONTRACT} - names
    ours = [sample for sample in samples if sample.name.startswith("vllm_prune_")]
    assert {sample.labels["model_name"] for sample in ours} == {"vllm-prune-demo"}
    # Counters are there before their first event, as a rate would miss it otherwise.
    idle = [sample for sample in ours if sample.name == "vllm_prune_kv_eviction_skipped_total"]
    assert {"pool_full", "speculative"} <= {sample.labels["reason"] for sample in idle}


def test_probes_have_no_line(observed: Server, log: Path) -> None:
    httpx.get(f"{observed.url}/health/ready", headers={"X-Request-Id": "probe-1"})
    ask(observed, {"X-Request-Id": "after-probe"})
    line_of(log, "after-probe")
    assert not [line for line in lines(log) if line.get("request_id") == "probe-1"]


def test_every_line_of_the_servers_is_json(observed: Server, log: Path) -> None:
    kinds = {line["name"] for line in lines(log)}
    assert {"vllm.vllm_prune.requests", "vllm.vllm_prune"} & kinds
    others = [line for line in log.read_text().splitlines() if not line.startswith("{")]
    assert not [line for line in others if re.match(r"(INFO|WARNING|ERROR|\(\w+ pid=)", line)], others


def test_the_span_joins_the_clients_trace_and_vllms_joins_ours(observed: Server, collector: Collector) -> None:
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    sent = {"traceparent": f"00-{trace}-{parent}-01", "X-Request-Id": "span-1"}
    fresh = user([image_part(png(112, 140, 77))], WORD)
    usage = ask(observed, sent, pruning=BUDGET, messages=fresh).json()["usage"]
    stages = ("admission", "preprocess", "media_decode", "queued", "encode", "score", "prefill", "compact", "decode")
    names = {"POST /v1/chat/completions", "llm_request", *stages}
    found = collector.wait(lambda spans: len([s for s in spans if s.trace_id.hex() == trace]) >= len(names))
    spans = {span.name: span for span in found if span.trace_id.hex() == trace}
    assert set(spans) == names
    root = spans["POST /v1/chat/completions"]
    assert root.parent_span_id.hex() == parent
    assert spans["score"].parent_span_id == spans["encode"].span_id
    below = {span.parent_span_id for name, span in spans.items() if name != "score" and span is not root}
    assert below == {root.span_id}
    check_root(attributes(root), usage)
    check_times(spans, root)
    assert attributes(spans["encode"]) == {"vllm_prune.items": 1, "vllm_prune.requests_in_pass": 1}
    assert attributes(spans["score"]) == {"vllm_prune.strategies": ["uniform"]}
    compact = attributes(spans["compact"])
    assert compact["vllm_prune.strategy"] == "knorm"
    assert compact["vllm_prune.rows"] - compact["vllm_prune.keep"] == usage["pruning"]["kv"]["evicted_tokens"]
    assert WORD not in str(found)
    assert KEY not in str(found)


def check_root(told: dict[str, Any], usage: dict[str, Any]) -> None:
    """What the request's own span says."""
    assert told["vllm_prune.request_id"] == "span-1"
    assert told["vllm_prune.pruning.visual.kept_tokens"] == usage["pruning"]["visual"]["kept_tokens"]
    assert told["vllm_prune.pruning.kv.evicted_tokens"] == usage["pruning"]["kv"]["evicted_tokens"]
    assert told["vllm_prune.budget.image.keep"] == 0.5
    assert told["http.response.status_code"] == 200
    assert told["http.route"] == "/v1/chat/completions"


def check_times(spans: dict[str, Any], root: Any) -> None:
    """Stages follow each other inside the request; what a worker does lies within its stage."""
    order = [spans[name] for name in ("admission", "preprocess", "queued", "prefill", "decode")]
    assert [span.start_time_unix_nano for span in order] == sorted(span.start_time_unix_nano for span in order)
    worked = [spans[name] for name in ("media_decode", "encode", "score", "compact")]
    for span in [*order, *worked]:
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano
    starts = [span.start_time_unix_nano for span in worked]
    assert starts == sorted(starts)
    assert spans["score"].end_time_unix_nano <= spans["encode"].end_time_unix_nano


def test_off_by_default(server: Server) -> None:
    answer = httpx.get(f"{server.url}/v1/models", headers={"X-Request-Id": "quiet-1"})
    assert answer.headers["x-request-id"] == "quiet-1"
    assert server.log is not None
    assert "quiet-1" not in server.log.read_text()
