"""Caps, the queue and its turns, sizes of bodies, clients that leave or dawdle."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from contextlib import ExitStack
from functools import partial
from typing import Any

import httpx
import pytest

from vllm_prune.budget.canonical import canonical
from vllm_prune.budget.errors import BudgetError
from vllm_prune.budget.fields import VisualField
from vllm_prune.budget.kv import KvSpec
from vllm_prune.config.admission import Admission
from vllm_prune.policy import Decision
from vllm_prune_server.admission.demand import Demand, demand_of
from vllm_prune_server.admission.estimate import Sizes, media_of, rows_held
from vllm_prune_server.admission.ledger import Amount, Ledger
from vllm_prune_server.admission.room import HeldRoom
from vllm_prune_server.openai.errors import Refusal
from vllm_prune_server.openai.routes import route_of

from .guarded import ALPHA, BETA, MIDDLE, SMALL, Guarded, headers, refused, until
from .media_files import image_part, jpeg, mp4, png, text_part, user, video_part

ONE = Amount(requests=1)


async def queue(ledger: Ledger, *wanted: tuple[str, Amount]) -> tuple[list[str], list[ExitStack]]:
    """Ask for room in that order; returns who got in, in the order they did, and what gives it back."""
    order: list[str] = []
    exits = [ExitStack() for _ in wanted]

    async def ask(name: str, amount: Amount, stack: ExitStack) -> None:
        try:
            await ledger.admit(name, amount, stack)
            order.append(name)
        except Refusal as refusal:
            order.append(f"{name} {refusal.reason}")

    for (name, amount), stack in zip(wanted, exits, strict=True):
        asyncio.get_running_loop().create_task(ask(name, amount, stack))
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    return order, exits


async def test_the_smallest_share_is_next_and_within_a_tenant_the_oldest() -> None:
    ledger = Ledger(Admission(max_inflight_requests=3, max_waiting=9, max_wait_seconds=5))
    order, exits = await queue(ledger, *[("a", ONE)] * 5, ("b", ONE), ("b", ONE))
    assert order == ["a", "a", "a"]
    for stack in exits:
        stack.close()
        await asyncio.sleep(0.01)
    # With two of a's in flight b is below its share, with one of each the older request goes first.
    assert order == ["a", "a", "a", "b", "a", "a", "b"]
    for stack in exits:
        stack.close()
    await asyncio.sleep(0.01)
    assert (ledger.total, dict(ledger.used), ledger.waiting) == (Amount(), {}, [])


async def test_nobody_overtakes_a_large_request() -> None:
    ledger = Ledger(Admission(max_inflight_visual_tokens=100, max_wait_seconds=5))
    order, exits = await queue(ledger, ("a", Amount(1, 60)), ("large", Amount(1, 80)), ("small", Amount(1, 20)))
    assert order == ["a"]
    exits[0].close()
    await asyncio.sleep(0.01)
    assert order == ["a", "large", "small"]


async def test_a_full_queue_refuses_the_newest_of_who_has_most() -> None:
    ledger = Ledger(Admission(max_inflight_requests=1, max_waiting=2, max_wait_seconds=5))
    order, _ = await queue(ledger, ("a", ONE), ("a", ONE), ("a", ONE), ("b", ONE), ("b", ONE))
    assert order == ["a", "a capacity", "a capacity"]
    assert [waiter.tenant for waiter in ledger.waiting] == ["b", "b"]
    ledger.refuse_waiting()
    await asyncio.sleep(0.01)
    assert order[3:] == ["b draining", "b draining"]


async def test_settling_frees_what_the_bound_had_taken() -> None:
    ledger = Ledger(Admission(max_inflight_visual_tokens=100, max_inflight_kv_rows=1000, max_wait_seconds=5))
    with ExitStack() as exits:
        # Above the cap: such a request waits until it is alone.
        first = await ledger.admit("a", Amount(1, 5000, 500), exits)
        assert ledger.total == Amount(1, 100, 500)
        order, _ = await queue(ledger, ("b", Amount(1, 30, 100)))
        assert order == []
        first.resize(40, 300)
        await asyncio.sleep(0.01)
        assert order == ["b"]
        assert ledger.total == Amount(2, 70, 400)
        with pytest.raises(BudgetError) as caught:
            first.resize(101, 300)
        assert caught.value.param == "pruning.visual"
        with pytest.raises(BudgetError, match=r"needs 1001 rows .* at most 1000"):
            first.resize(40, 1001)
    assert ledger.total == Amount(1, 30, 100)


async def test_who_gives_up_leaves_nothing_behind() -> None:
    ledger = Ledger(Admission(max_inflight_requests=1, max_wait_seconds=0.05))
    order, exits = await queue(ledger, ("a", ONE), ("b", ONE))
    await asyncio.sleep(0.1)
    assert order == ["a", "b wait_timeout"]
    task = asyncio.create_task(ledger.admit("c", ONE, ExitStack()))
    await asyncio.sleep(0)
    exits[0].close()
    # Granted and cancelled in the same moment.
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (ledger.total, ledger.waiting) == (Amount(), [])


def test_rows_know_the_budget() -> None:
    assert rows_held(1, 10, [100], None, 1000) == 110
    assert rows_held(3, 10, [100], None, 1000) == 130
    assert rows_held(1, None, [100, 50], None, 1000) == 2000
    kv = KvSpec("gui_kv", keep="0.2", buffer=4)
    assert rows_held(1, 10, [100], kv, 1000) == 24
    assert rows_held(2, 2, [100], kv, 1000) == 44
    assert rows_held(1, 10, [3], KvSpec("gui_kv", max_tokens=500), 1000) == 13
    # What compacts once keeps what is decoded, and over groups of layers it may keep all of the prompt.
    once = KvSpec("dyvte", keep="0.2")
    assert rows_held(4, 300, [100], once, 1000) == 4 * (20 + 300)
    assert rows_held(4, 300, [100], once, 1000, grouped=True) == 4 * (100 + 300)


SIZES = Sizes(8192, {"image": 400, "video": 6000}, lambda width, height: width * height // 784)
CHAT = "/v1/chat/completions"


def demand(path: str, body: dict[str, Any], visual: Any = None) -> Demand:
    limit = "max_output_tokens" if path.startswith("/v1/responses") else "max_tokens"
    document = {limit: 10, **body}
    decision = Decision(None if visual is None else canonical(VisualField(**visual)))
    return demand_of(document, len(json.dumps(document)), route_of(path), decision, SIZES)


def visual_of(parts: list[dict[str, Any]], visual: Any = None) -> int:
    return demand(CHAT, {"messages": user(parts)}, visual).amount().visual


def test_bounds_hold_before_anything_is_decoded() -> None:
    parts = [
        image_part(png(280, 280)),
        image_part(jpeg(112, 140), "image/jpeg"),
        {"type": "image_url", "image_url": {}},
    ]
    assert [item.kind for item in media_of(user(parts))] == ["image"] * 3
    assert visual_of(parts) == 100 + 20 + 400
    assert visual_of(parts, {"keep": 0.5}) == 50 + 10 + 200
    assert visual_of(parts, {"max_tokens": 30}) == 30
    assert visual_of([video_part(mp4(4, 84, 84))]) == 6000
    broken = [{"content": [{"type": "input_image", "image_url": "data:image/png;base64,!"}]}]
    assert demand("/v1/responses", {"input": broken}).amount().visual == 400
    text = "x" * 50
    for path, body in ((CHAT, {"messages": user([text_part(text)])}), ("/v1/responses", {"input": text})):
        amount = demand(path, body).amount()
        assert amount.visual == 0
        assert 50 + 256 + 10 <= amount.rows <= 50 + 256 + 10 + 200


def test_anthropics_images_have_a_size_too() -> None:
    data = image_part(png(280, 280))["image_url"]["url"].partition(",")[2]
    source = {"type": "base64", "media_type": "image/png", "data": data}
    parts = [
        {"type": "image", "source": source},
        {"type": "tool_result", "content": [{"type": "image", "source": source}]},
    ]
    for path, rows in (("/v1/messages", True), ("/v1/messages/count_tokens", False)):
        amount = demand(path, {"messages": [{"role": "user", "content": parts}]}).amount()
        assert amount.visual == 200
        assert bool(amount.rows) is rows


def test_every_prompt_has_its_own_bound() -> None:
    def rows(path: str, **body: Any) -> int:
        return demand(path, body).amount().rows

    one = rows("/v1/completions", prompt="word " * 100)
    assert one == 500 + 256 + 10
    assert rows("/v1/completions", prompt=["word " * 100] * 7) == 7 * one
    assert rows("/v1/completions", prompt=["word " * 100, "é"]) == one + 2 + 256 + 10
    assert rows("/v1/completions", prompt=[1] * 300) == 310
    assert rows("/v1/completions", prompt=[[1] * 300, [2] * 100]) == 420
    assert rows("/v1/completions", prompt_embeds=["AA", "BB"]) == 2 * 8192
    assert rows("/v1/completions", prompt=["a" * 100_000] * 2) == 2 * 8192
    assert rows("/v1/completions", prompt="word " * 100, n=3) == one + 20
    assert rows("/v1/responses", input="hi", previous_response_id="resp_1") == 8192
    tokens = {"token_ids": [1] * 100, "sampling_params": {"max_tokens": 7, "n": 2}}
    assert rows("/inference/v1/generate", **tokens) == 114


def test_fields_that_vllm_ignores_make_no_demand_smaller() -> None:
    picture = user([image_part(png(280, 280))])
    chat = demand(CHAT, {"messages": picture}).amount()
    for more in (
        {"token_ids": []},
        {"prompt": "x"},
        {"max_output_tokens": 1},
        {"sampling_params": {"n": 1, "max_tokens": 1}},
        {"max_completion_tokens": None},
    ):
        amount = demand(CHAT, {"messages": picture, **more}).amount()
        assert amount.visual == chat.visual == 100, more
        assert amount.rows >= chat.rows, more
    asked = demand("/v1/responses", {"input": picture, "prompt": {"id": "x"}, "max_output_tokens": 10}).amount()
    assert asked.visual == 100
    texts = {"prompt": ["word " * 100] * 7}
    alone = demand("/v1/completions", texts).amount()
    assert demand("/v1/completions", {**texts, "messages": [], "input": "x"}).amount() == alone
    assert demand("/invocations", texts).amount() == alone
    assert demand("/invocations", {"messages": picture}).amount().visual == 100
    assert demand("/invocations", {"messages": picture, **texts}).amount().visual == 100


def test_numbers_are_read_as_vllm_reads_them() -> None:
    def rows(path: str, **body: Any) -> int:
        prompt = {"messages": user([])} if path == CHAT else {"prompt": "word"}
        return demand(path, {**prompt, "max_tokens": None, **body}).amount().rows

    for path in ("/v1/completions", CHAT):
        one, three = rows(path, max_tokens=100), rows(path, max_tokens=100, n=3)
        assert three >= one + 200
        assert [rows(path, max_tokens=100, n=value) >= three for value in ("3", 3.0)] == [True, True]
        assert [one <= rows(path, max_tokens=value) < 2 * one for value in ("100", 100.0)] == [True, True]
        assert rows(path, max_tokens="many") == rows(path, max_tokens=None) == 8192
    assert rows(CHAT, max_tokens=1, max_completion_tokens=100) >= rows(CHAT, max_tokens=100)
    assert rows("/v1/completions", max_completion_tokens=1) == 8192
    assert demand("/invocations", {"prompt": "word", "max_tokens": None, "max_completion_tokens": 1}).output is None


def test_every_conversation_of_a_batch_has_its_own_bound() -> None:
    picture = user([image_part(png(280, 280))])
    batch = demand("/v1/chat/completions/batch", {"messages": [picture, picture, user([])]})
    assert [prompt.visual for prompt in batch.prompts] == [100, 100, 0]
    alone = demand(CHAT, {"messages": picture}).prompts[0]
    assert all(prompt.tokens >= alone.tokens - 40 for prompt in batch.prompts[:2])
    assert batch.prompts[2].tokens < alone.tokens


async def test_prompts_take_their_true_size_one_after_the_other() -> None:
    ledger = Ledger(Admission(max_inflight_visual_tokens=1000, max_inflight_kv_rows=100_000))
    picture = user([image_part(png(280, 280))])
    needed = demand("/v1/chat/completions/batch", {"messages": [picture, picture]})
    with ExitStack() as exits:
        room = HeldRoom(await ledger.admit("a", needed.amount(), exits), needed)
        bound = needed.prompts[1]
        assert room.amount().visual == 200
        room.resize(50, [60])
        assert room.amount() == Amount(1, 50 + bound.visual, 70 + needed.rows(bound.tokens))
        room.resize(None, [110])
        assert room.amount() == Amount(1, 50 + 100, 70 + 120)
        # Another turn of the same request, once its tool has answered.
        room.resize(0, [200])
        assert room.amount() == Amount(1, 0, 210)
        with pytest.raises(BudgetError):
            room.resize(1001, [1100])
    assert ledger.total == Amount()


def test_media_are_found_wherever_a_client_may_put_them() -> None:
    url = {"url": "https://example.org/a.png"}
    tool = {"type": "function_call_output", "output": [{"type": "input_image", "image_url": url["url"]}]}
    assert len(media_of([tool, {"content": [{"image_url": url, "uuid": "x"}]}])) == 2
    anthropic = {"type": "image", "source": {"type": "base64", "data": ""}}
    result = {"type": "tool_result", "content": [anthropic]}
    assert len(media_of([{"content": [anthropic, result, {"type": "text", "text": "x"}]}])) == 2
    deep: Any = [{"image_url": url}]
    for _ in range(5000):
        deep = [{"content": deep}]
    assert media_of(deep) == []
    assert media_of(["a", "b"]) == []
    small = image_part(png(28, 28))["image_url"]
    two_kinds = {"type": "video_url", "video_url": url, "image_url": small}
    assert {item.kind for item in media_of([{"content": [two_kinds]}])} == {"image", "video"}
    assert len(media_of([{"role": "user", "image_url": small, "content": [{"image_url": url}] * 3}])) >= 3
    assert len(media_of([{"content": [{**anthropic, "image_url": small}]}])) >= 1
    assert media_of([{"content": [{"type": [], "url": "x"}]}]) == []


def test_over_capacity_waits_then_503(guarded: Guarded) -> None:
    guarded.idle()
    with guarded.hold(ALPHA), guarded.hold(ALPHA), guarded.hold(BETA) as last:
        start = time.monotonic()
        error = refused(guarded.chat(ALPHA), 503, "server_overloaded")
        assert error["type"] == "server_error"
        assert 2 < time.monotonic() - start < 20
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(guarded.chat(ALPHA)))
        thread.start()
        until(lambda: waiting(guarded, 1))
        last.close()
        thread.join(30)
        assert answers[0].status_code == 200
    assert guarded.server.metric("vllm_prune_rejections_total", reason="wait_timeout") >= 1
    guarded.idle()


def waiting(guarded: Guarded, wanted: int) -> bool:
    return guarded.server.metric("vllm_prune_waiting_requests") == wanted


def test_contended_room_goes_to_the_tenant_with_less(guarded: Guarded) -> None:
    guarded.idle()
    order: list[str] = []
    held = [guarded.hold(ALPHA) for _ in range(3)]

    def ask(name: str, key: str) -> None:
        answer = guarded.chat(key)
        order.append(f"{name} {answer.status_code}")
        if answer.status_code != 200:
            refused(answer, 503, "server_overloaded")

    threads = []
    for name, key, wanted in (("alpha 1", ALPHA, 1), ("alpha 2", ALPHA, 2), ("beta", BETA, 2)):
        threads.append(threading.Thread(target=ask, args=(name, key)))
        threads[-1].start()
        until(partial(waiting, guarded, wanted))
    until(lambda: len(order) == 1)
    # Two may wait. The third is of a tenant that has nothing in flight, so one of the other's had to go.
    assert order == ["alpha 2 503"]
    held[0].close()
    for thread in threads:
        thread.join(30)
    assert order[1:] == ["beta 200", "alpha 1 200"]
    for one in held:
        one.close()
    guarded.idle()


def test_visual_tokens_are_capped_by_what_is_kept(guarded: Guarded) -> None:
    guarded.idle()
    with guarded.hold(ALPHA, 100):
        with guarded.hold(ALPHA, 90):
            refused(guarded.chat(ALPHA, [SMALL]), 503, "server_overloaded")
            assert guarded.chat(ALPHA, [SMALL], pruning={"visual": {"keep": 0.5}}).status_code == 200
            assert guarded.chat(ALPHA).status_code == 200
        assert guarded.chat(ALPHA, [MIDDLE]).status_code == 200
        # Nobody knows how large a video is before it has been decoded.
        refused(guarded.chat(ALPHA, [video_part(mp4(4, 84, 84))]), 503, "server_overloaded")
    assert guarded.chat(ALPHA, [video_part(mp4(4, 84, 84))]).status_code == 200
    large = [image_part(png(420, 420))]
    error = guarded.chat(ALPHA, large).json()["error"]
    assert (error["param"], error["code"]) == ("pruning.visual", 400)
    assert "needs 225 visual tokens; this server admits at most 200" in error["message"]
    assert guarded.chat(ALPHA, large, pruning={"visual": {"keep": 0.5}}).status_code == 200
    guarded.idle()


def test_cache_rows_are_capped_by_what_the_budget_leaves(guarded: Guarded) -> None:
    text = [text_part("word " * 600)]
    choices = {"n": 16, "max_tokens": 2000, "stop": [" "]}
    error = guarded.chat(ALPHA, text, **choices).json()["error"]
    assert error["param"] == "pruning.kv"
    assert "at most 30000" in error["message"]
    assert guarded.chat(ALPHA, text, **choices, pruning={"kv": {"keep": 0.2, "buffer": 64}}).status_code == 200
    guarded.idle()


def test_too_many_items(guarded: Guarded) -> None:
    answer = guarded.chat(ALPHA, [SMALL] * 6)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["type"], error["code"]) == ("messages", "BadRequestError", 400)
    guarded.idle()


def test_bodies_that_are_too_large_with_and_without_a_length(guarded: Guarded) -> None:
    url = f"{guarded.url}/v1/chat/completions"

    def chunks(count: int) -> Any:
        for _ in range(count):
            yield b" " * 50_000

    kind = {**headers(ALPHA), "content-type": "application/json"}
    for content in (b" " * 400_001, chunks(9), chunks(40)):
        error = refused(httpx.post(url, content=content, headers=kind, timeout=30), 413, "request_too_large")
        assert error["type"] == "invalid_request_error"
    # At the limit it is read, and then it is no JSON.
    assert httpx.post(url, content=chunks(8), headers=kind, timeout=30).status_code == 400
    assert guarded.server.metric("vllm_prune_rejections_total", reason="body_too_large") == 3


def test_a_slow_body_is_cut_off_and_holds_nobody_up(guarded: Guarded) -> None:
    with raw(guarded, f"content-length: 1000\r\nauthorization: Bearer {ALPHA}\r\n\r\n") as slow:
        start = time.monotonic()
        while time.monotonic() - start < 1:
            slow.sendall(b" ")
            assert guarded.chat(ALPHA).status_code == 200
            time.sleep(0.1)
        answer = read(slow)
        assert 1.5 < time.monotonic() - start < 20
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer


def raw(guarded: Guarded, rest: str) -> socket.socket:
    """A connection on which a chat request has begun."""
    connection = socket.create_connection(("127.0.0.1", guarded.server.port), timeout=30)
    connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{rest}".encode())
    return connection


def read(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    found = b""
    while data := connection.recv(65536):
        found += data
    return found


def test_thousands_of_idle_connections_leave_room_for_requests(guarded: Guarded) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(3000, hard - 500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 400), hard))
    with ExitStack() as exits:
        for i in range(count):
            # Every other one has sent half a header: uvicorn has no limit for that, a proxy in front has.
            idle = socket.create_connection(("127.0.0.1", guarded.server.port), timeout=30)
            exits.callback(idle.close)
            if i % 2:
                idle.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauth")
        start = time.monotonic()
        assert guarded.chat(ALPHA).status_code == 200
        assert guarded.get("/health/ready").status_code == 200
        assert time.monotonic() - start < 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_request(guarded: Guarded, stream: bool) -> None:
    guarded.idle()
    server = guarded.server
    before = server.metric("vllm:generation_tokens_total")
    # Work for half a minute, were it not for the end of the connection.
    content = guarded.body([SMALL], n=4, max_tokens=7000, ignore_eos=True, stream=stream)
    url = f"{guarded.url}/v1/chat/completions"
    with httpx.Client(timeout=httpx.Timeout(30, read=30 if stream else 1)) as client:
        if stream:
            with client.stream("POST", url, json=content, headers=headers(ALPHA)) as response:
                chunks = response.iter_raw()
                for _ in range(10):
                    next(chunks)
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(url, json=content, headers=headers(ALPHA))
    until(lambda: server.metric("vllm:num_requests_running") == 0, 20)
    guarded.idle()
    made = server.metric("vllm:generation_tokens_total") - before
    assert 0 < made < 4 * 7000 * 0.9
