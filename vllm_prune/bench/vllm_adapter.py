"""vLLM's own load generator, with one request function of ours.

`vllm bench serve` gives the arrival process, the concurrency bound, the progress bar and the clock of each request.
Our request function is vLLM's for chat completions; it only also reads `usage.pruning`, which vLLM's throws away, from
the bytes that pass by.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from ..vllm_compat.signatures import BENCH_SIGNATURES, signature_problems

BACKEND = "vllm-prune-chat"
_TAIL = 16_384


class BenchError(RuntimeError):
    """The load test cannot run; the message says what to change."""


@dataclass
class Outcome:
    """One request.

    Attributes:
        ok: whether it was answered.
        ttft, latency: seconds.
        itl: seconds between chunks.
        output_tokens, prompt_tokens: from its usage.
        pruning: its `usage.pruning`.
        error: why it was not answered.
    """

    ok: bool
    ttft: float
    latency: float
    itl: list[float]
    output_tokens: int
    prompt_tokens: int
    pruning: dict[str, Any] = field(default_factory=dict)
    error: str = ""


class _Tap:
    """Stands for the session inside vLLM's request function and keeps the end of what was read."""

    def __init__(self, session: Any) -> None:
        self._session, self.tail, self.refusal = session, b"", ""

    @contextlib.asynccontextmanager
    async def post(self, **request: Any) -> AsyncIterator[Any]:
        async with self._session.post(**request) as response:
            if response.status != 200:
                self.refusal = f"{response.status} {(await response.text())[:500]}"
            yield _TappedResponse(response, self)


class _TappedResponse:
    def __init__(self, response: Any, tap: _Tap) -> None:
        self.status, self.reason, self.content = response.status, response.reason, self
        self._response, self._tap = response, tap

    async def iter_any(self) -> AsyncIterator[bytes]:
        async for chunk in self._response.content.iter_any():
            self._tap.tail = (self._tap.tail + chunk)[-_TAIL:]
            yield chunk


def pruning_of(tail: bytes) -> dict[str, Any]:
    """`usage.pruning` of the last event that has one; empty where none has."""
    for line in reversed(tail.split(b"\n")):
        if line.startswith(b"data: {") and b'"usage"' in line:
            usage = json.loads(line[6:]).get("usage") or {}
            if "pruning" in usage:
                report: dict[str, Any] = usage["pruning"]
                return report
    return {}


async def run(
    url: str,
    model: str,
    chats: list[list[dict[str, Any]]],
    overrides: list[dict[str, Any]],
    tokens: int,
    rate: float,
    concurrency: int | None,
) -> tuple[list[Outcome], float]:
    """Send all requests; returns their outcomes in order and the seconds from the first to the last.

    Args:
        url: of the server, without `/v1`.
        model: name to send.
        chats: messages per request.
        overrides: further fields per request.
        tokens: to generate per request, exactly.
        rate: requests per second (Poisson), infinite for all at once.
        concurrency: most requests in flight, None for no bound.

    Raises:
        BenchError: no vLLM here, or one whose load generator is not as expected.
    """
    try:
        from vllm.benchmarks import serve
        from vllm.benchmarks.datasets import SampleRequest
        from vllm.benchmarks.lib.endpoint_request_func import ASYNC_REQUEST_FUNCS, async_request_openai_chat_completions
    except ImportError as error:
        raise BenchError(f"the load generator is vLLM's, which is not importable here ({error})") from None
    if problems := signature_problems(BENCH_SIGNATURES):
        raise BenchError("; ".join(problems))
    outcomes: dict[str, Outcome] = {}

    async def request(request_func_input: Any, session: Any, pbar: Any = None) -> Any:
        tap = _Tap(session)
        output = await async_request_openai_chat_completions(request_func_input, tap, pbar)
        if tap.refusal:
            output.error = tap.refusal
        outcomes[request_func_input.request_id] = Outcome(
            output.success, output.ttft, output.latency, output.itl, output.output_tokens or 0, output.prompt_len,
            pruning_of(tap.tail), output.error,
        )  # fmt: skip
        return output

    requests = [
        SampleRequest(
            prompt="", prompt_len=0, expected_output_len=tokens, request_id=f"bench-{i}", chat_messages=chat,
            request_overrides=override,
        )
        for i, (chat, override) in enumerate(zip(chats, overrides, strict=True))
    ]  # fmt: skip
    ASYNC_REQUEST_FUNCS[BACKEND] = request
    try:
        # What it prints is a table over all classes together; ours is per class.
        with contextlib.redirect_stdout(io.StringIO()):
            result = await serve.benchmark(
                task_type=serve.TaskType.GENERATION, endpoint_type=BACKEND, api_url=f"{url}/v1/chat/completions",
                base_url=url, model_id=model, model_name=model, tokenizer=None, input_requests=requests, logprobs=None,
                request_rate=rate, burstiness=1.0, disable_tqdm=False, num_warmups=0, profile=False,
                selected_percentile_metrics=[], selected_percentiles=[50.0], ignore_eos=True, goodput_config_dict={},
                max_concurrency=concurrency, lora_modules=None, extra_headers=None, extra_body={"temperature": 0},
                ready_check_timeout_sec=0,
            )  # fmt: skip
    finally:
        del ASYNC_REQUEST_FUNCS[BACKEND]
    return [outcomes[f"bench-{i}"] for i in range(len(requests))], float(result["duration"])
