"""Step `exact`: the demo model under vLLM's default compilation and CUDA graphs, each runner beside its stock.

Without a budget the answers and their log-probabilities are stock's to the last bit; with one, the counts are what was
asked, the same request gives the same answer twice, and the answers are others than without: the comparison can fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import httpx

from ..random_model import DEMO
from ..speed.arms import OFF, OURS, STOCK
from ..speed.fleet import Fleet, Plan
from ..speed.rounds import empty_caches
from ..speed.workloads import Chat, Workload
from .runner import Context

CELL = 28
WORKLOADS = (
    Workload("screenshot", 24, screens=((7, 10),)),
    Workload("five screenshots", 24, screens=((5, 6),) * 5),
    Workload("video", 24, video=(8, 4, 5)),
    Workload("text", 24, words=40),
)
VISUAL: dict[str, dict[str, Any]] = {
    "divprune 50%": {"strategy": "divprune", "keep": 0.5},
    "divprune 25% in the tower": {"strategy": "divprune", "keep": 0.25, "options": {"where": "tower"}},
    "gui_dedup 50%": {"strategy": "gui_dedup", "keep": 0.5},
    "stts 25%": {"strategy": "stts", "keep": 0.25},
}
KV: dict[str, dict[str, Any]] = {
    name: {"strategy": name, "keep": 0.2, "buffer": 16} for name in ("snapkv", "gui_kv", "random")
}
STARTS = 0.75
"""Share of the step's time in which servers have to start."""
KERNEL_WORDS = ("attention backend", "FlashAttention version", "for vit attention")
GRAPH_WORDS = (*KERNEL_WORDS, "cudagraph", "CUDA graph", "CUDAGraph")


def run(context: Context) -> None:
    """Start stock and ours of every runner side by side, then compare."""
    with Fleet(DEMO, context.work, _limit(context), context.scale.stop_seconds) as fleet:
        errors = fleet.start(plans(context), context.scale.at_once)
        context.result |= {"start_errors": errors, "notes": fleet.notes, "runners": {}}
        for runner in context.scale.runners:
            if lost := [name for name in (f"{STOCK}_{runner}", f"{OURS}_{runner}") if name not in fleet]:
                context.tell(f"{', '.join(lost)} did not start")
                continue
            found = context.result["runners"][runner] = {}
            for name, part in (("off", _off), ("visual", _visual), ("kv", _kv)):
                with context.part(f"{runner}: {name}"):
                    found[name] = part(fleet, runner)
        context.result["log"] = fleet.log_lines(GRAPH_WORDS)
    if errors:
        context.problems |= {f"start of {name}": text for name, text in errors.items()}


def plans(context: Context) -> list[Plan]:
    """Stock and ours of each runner, at vLLM's defaults but for memory."""
    scale = context.scale
    arguments = ["--max-model-len", "4096", "--max-num-seqs", "8", "--kv-cache-memory-bytes", str(256 << 20),
                 "--limit-mm-per-prompt", '{"image": 5, "video": 1}', *scale.device_arguments]  # fmt: skip
    if scale.cuda:
        arguments += ["--cudagraph-metrics"]
    fallback = ("--enforce-eager",) if scale.cuda else ()
    environment = {"VLLM_LOG_STATS_INTERVAL": "2"}
    return [
        Plan(f"{server}_{runner}", kind, tuple(arguments), environment | scale.environment(runner), fallback)
        for runner in scale.runners
        for server, kind in ((STOCK, "stock"), (OURS, "prune"))
    ]


def _limit(context: Context) -> float:
    """Seconds for the starts, so that some are left for the questions."""
    return max(1.0, min(context.scale.start_seconds, STARTS * context.clock.left))


def chats() -> Iterator[tuple[str, Workload, Chat]]:
    """Two requests of each kind."""
    for workload in WORKLOADS:
        for number, chat in enumerate(islice(workload.chats(CELL, seed=11), 2)):
            yield f"{workload.name} {number}", workload, chat


def answer(fleet: Fleet, server: str, chat: Chat, tokens: int, pruning: Any = None) -> dict[str, Any]:
    """One request on an idle server: its text, the log-probability of every token, and its usage."""
    body: dict[str, Any] = {"model": fleet.models[server], "messages": chat, "max_tokens": tokens, "temperature": 0,
                            "ignore_eos": True, "logprobs": True, "top_logprobs": 4}  # fmt: skip
    if pruning is not None:
        body["pruning"] = pruning
    reply = httpx.post(f"{fleet[server].url}/v1/chat/completions", json=body, timeout=120, trust_env=False)
    if reply.status_code != 200:
        raise RuntimeError(f"{server} answered {reply.status_code}: {reply.text[:2000]}")
    content = reply.json()
    (choice,) = content["choices"]
    return {"text": choice["message"]["content"], "logprobs": choice["logprobs"]["content"], "usage": content["usage"]}


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a["text"] == b["text"] and a["logprobs"] == b["logprobs"]


def _off(fleet: Fleet, runner: str) -> dict[str, Any]:
    """Every request without a budget, and with both parts off, against stock; then a control."""
    stock, ours, different, tokens = f"{STOCK}_{runner}", f"{OURS}_{runner}", [], 0
    for name, workload, chat in chats():
        for kind, pruning in (("no field", None), ("off", OFF)):
            # Asked as often as ours: what a cached prefix leaves to compute is the same on both.
            expected = answer(fleet, stock, chat, workload.tokens)
            tokens += len(expected["logprobs"])
            if not _same(expected, answer(fleet, ours, chat, workload.tokens, pruning)):
                different.append(f"{name}, {kind}")
    _, workload, chat = next(chats())
    control = answer(fleet, ours, chat, workload.tokens, {"visual": {"keep": 0.25}, "kv": None})
    noticed = not _same(answer(fleet, stock, chat, workload.tokens), control)
    if different or not noticed:
        raise RuntimeError(f"differ from stock: {different}; a pruned answer is noticed: {noticed}")
    return {"tokens_compared": tokens, "different": different, "control_noticed": noticed}


def _visual(fleet: Fleet, runner: str) -> dict[str, Any]:
    """Budgets on pictures and videos: the counts, and the same answer twice."""
    found = {}
    for name, field in VISUAL.items():
        wanted = [(workload, chat) for kind, workload, chat in chats() if workload.media and kind.endswith("0")]
        found[name] = [_twice(fleet, f"{OURS}_{runner}", w, chat, {"visual": field, "kv": None}) for w, chat in wanted]
    wrong = {
        name: rows
        for name, rows in found.items()
        for row in rows
        if not row["same_twice"] or not 0 < row["visual"]["kept_tokens"] < row["visual"]["input_tokens"]
    }
    return _checked(found, wrong)


def _kv(fleet: Fleet, runner: str) -> dict[str, Any]:
    """KV budgets: rows were evicted, and the same answer twice."""
    workload = WORKLOADS[1]
    chat = next(workload.chats(CELL, seed=12))
    found = {
        name: _twice(fleet, f"{OURS}_{runner}", workload, chat, {"visual": None, "kv": field})
        for name, field in KV.items()
    }
    wrong = {name: row for name, row in found.items() if not row["same_twice"] or not row["kv"]["evicted_tokens"]}
    return _checked(found, wrong)


def _checked(found: dict[str, Any], wrong: dict[str, Any]) -> dict[str, Any]:
    if wrong:
        raise RuntimeError(f"not as asked: {wrong}")
    return found


def _twice(fleet: Fleet, server: str, workload: Workload, chat: Chat, pruning: Any) -> dict[str, Any]:
    answers = []
    for _ in range(2):
        # From a cached prefix the arithmetic would be another on a GPU, and with it the last bits.
        empty_caches(fleet[server])
        answers.append(answer(fleet, server, chat, workload.tokens, pruning))
    one, other = answers
    report = one["usage"]["pruning"]
    return {"workload": workload.name, "same_twice": _same(one, other), "text": one["text"],
            "visual": report["visual"], "kv": report["kv"]}  # fmt: skip
