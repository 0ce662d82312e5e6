"""One log line per request: its budget and what it cost, never a prompt, a URL or a key."""

from __future__ import annotations

import json
from typing import Any

from vllm.logger import init_logger

from vllm_prune.budget.fields import AUTO, is_auto
from vllm_prune.config.load import configuration
from vllm_prune.policy import Decision
from vllm_prune.request import RequestContext

# A child of vLLM's logger, so that it writes where and how vLLM writes.
logger = init_logger("vllm.vllm_prune.requests")


def write(context: RequestContext) -> None:
    """Write the line of a request that has been answered."""
    line = fields(context)
    if configuration().logging.resolved_format() == "json":
        logger.info("request", extra=line)
    else:
        logger.info("request %s", json.dumps(line, separators=(",", ":")))


def fields(context: RequestContext) -> dict[str, Any]:
    """What a line says about a request; parts that it does not have are left out. Times in seconds."""
    line: dict[str, Any] = {
        "request_id": context.request_id,
        "method": context.method,
        "route": context.route,
        "status": context.status,
        "complete": context.complete,
        "model": context.model,
        "stream": context.stream,
        "rejected": context.rejected,
        "budget": budget(context.decision) if context.decision is not None else None,
        "pruning": _outcome(context) if context.decision is not None else None,
        "tokens": tokens(context),
        "finish_reasons": sorted({str(stats.finish_reason) for _, stats in context.engine}) or None,
        "seconds": seconds(context),
    }
    return {key: value for key, value in line.items() if value is not None}


def budget(decision: Decision) -> dict[str, Any] | None:
    """The budget in force, after defaults, presets and limits; options of strategies are left out."""
    shown: dict[str, Any] = {}
    if (spec := decision.spec) is not None:
        for modality in ("image", "video"):
            if (part := spec.part(modality)) is not None:
                shown[modality] = {"strategy": part.strategy}
                if part.keep is not None:
                    shown[modality]["keep"] = AUTO if is_auto(part.keep) else float(part.keep)
                elif part.max_tokens is not None:
                    shown[modality]["max_tokens"] = part.max_tokens
        if spec.max_tokens is not None:
            shown["max_tokens"] = spec.max_tokens
        if spec.limit is not None:
            shown["limit"] = spec.limit
    if (kv := decision.kv) is not None:
        size = {"keep": float(kv.keep)} if kv.keep is not None else {"max_tokens": kv.max_tokens}
        shown["kv"] = {"strategy": kv.strategy, **size}
    return shown or None


def _outcome(context: RequestContext) -> dict[str, Any] | None:
    usage = context.usage()
    clamped = sorted({entry["reason"] for entry in usage.pop("clamped")})
    outcome = {part: value for part, value in usage.items() if value is not None}
    return (outcome | ({"clamped": clamped} if clamped else {})) or None


def tokens(context: RequestContext) -> dict[str, int] | None:
    """Tokens by vLLM's count. Choices of one prompt share its tokens, prompts of one request add up."""
    prompts: dict[str, tuple[int, int]] = {}
    for _, stats in context.engine:
        known = prompts.get(stats.request_id, (0, 0))
        prompts[stats.request_id] = (
            max(known[0], stats.num_prompt_tokens),
            max(known[1], stats.num_cached_tokens),
        )
    if not prompts:
        return None
    return {
        "prompt": sum(tokens for tokens, _ in prompts.values()),
        "cached": sum(cached for _, cached in prompts.values()),
        "completion": sum(stats.num_generation_tokens for _, stats in context.engine),
    }


def seconds(context: RequestContext) -> dict[str, float]:
    """Where the time went. `queued`, `prefill` and `decode` are vLLM's, of the slowest engine request."""
    durations: dict[str, float] = {}
    if context.ended is not None:
        durations["total"] = context.ended - context.began
    if context.first_byte is not None:
        durations["first_byte"] = context.first_byte - context.began
    for one in context.stages:
        durations[one.name] = durations.get(one.name, 0.0) + one.end - one.start
    for name in ("queued", "prefill", "decode"):
        times = [getattr(stats, f"{name}_time") for _, stats in context.engine]
        if times:
            durations[name] = max(times)
    return {name: round(value, 6) for name, value in durations.items()}
