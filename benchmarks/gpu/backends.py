"""Step `kernels`: the tests marked `gpu`, then KV eviction and visual budgets on each attention backend in turn."""

from __future__ import annotations

import shlex
from importlib import util
from typing import Any

from ..random_model import DEMO
from ..speed.arms import OFF
from ..speed.fleet import Fleet, Plan
from . import exact, tests_step
from .runner import Context, Skip

MODULES = {"FLASH_ATTN": "vllm.vllm_flash_attn", "FLASHINFER": "flashinfer", "TRITON_ATTN": "triton"}
"""Attention backends by their names in vLLM, and what each needs. FLASH_ATTN is FlashAttention 3 on Hopper."""
SYNC_CHECK = "VLLM_GPU_SYNC_CHECK"
"""With "error", a step that waits for the GPU ends the engine: one more server, with the default backend."""


def plans(context: Context) -> list[Plan]:
    """Ours on every backend, with the runner that comes first."""
    scale = context.scale
    arguments = ("--max-model-len", "4096", "--max-num-seqs", "8", "--kv-cache-memory-bytes", str(256 << 20),
                 "--limit-mm-per-prompt", '{"image": 5, "video": 1}', *scale.device_arguments)  # fmt: skip
    environment = scale.environment(scale.runners[0])
    strict = Plan(SYNC_CHECK, "prune", arguments, environment | {SYNC_CHECK: "error"})
    return [Plan(name, "prune", (*arguments, "--attention-backend", name), environment) for name in MODULES] + [strict]


def missing() -> dict[str, str]:
    """Backends that cannot run here, and why."""
    return {name: f"{module} is not installed" for name, module in MODULES.items() if not _importable(module)}


def _importable(module: str) -> bool:
    try:
        return util.find_spec(module) is not None
    except ImportError:
        return False


def run(context: Context) -> None:
    """Run the tests, then start a server per backend and ask each the same."""
    tests_step.run(context)
    chosen = plans(context)
    context.result["commands"] = {plan.name: shlex.join(plan.arguments) for plan in chosen}
    with context.part("backends"):
        if not context.scale.cuda:
            raise Skip("no CUDA: these kernels need it")
        _compare(context, chosen)


def _compare(context: Context, chosen: list[Plan]) -> None:
    """Answers on every backend beside those of the first."""
    without = context.result["not_installed"] = missing()
    chosen = [plan for plan in chosen if plan.name not in without]
    with Fleet(DEMO, context.work, max(1.0, exact.STARTS * context.clock.left), context.scale.stop_seconds) as fleet:
        errors = fleet.start(chosen, context.scale.at_once)
        context.problems |= {f"start of {name}": text for name, text in errors.items()}
        found: dict[str, Any] = context.result.setdefault("backends", {})
        for plan in chosen:
            if plan.name in fleet:
                with context.part(plan.name):
                    found[plan.name] = _answers(fleet, plan.name)
        context.result["log"] = fleet.log_lines(exact.GRAPH_WORDS)
    texts = {name: {kind: one["text"] for kind, one in answers.items()} for name, answers in found.items()}
    first = next(iter(texts.values()), {})
    context.result["same_text_as_first"] = {
        name: {kind: text == first[kind] for kind, text in kinds.items()} for name, kinds in texts.items()
    }


def _answers(fleet: Fleet, server: str) -> dict[str, Any]:
    workload = exact.WORKLOADS[1]
    chat = next(workload.chats(exact.CELL, seed=13))
    fields = {
        "off": OFF,
        "visual 50%": {"visual": {"keep": 0.5}, "kv": None},
        **{f"kv {name}": {"visual": None, "kv": field} for name, field in exact.KV.items()},
    }
    result = {}
    for name, field in fields.items():
        one = exact.answer(fleet, server, chat, workload.tokens, field)
        result[name] = {"text": one["text"], "pruning": one["usage"].get("pruning")}
    return result
