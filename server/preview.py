"""What a budget would keep of a conversation's media, and what that would cost, without an answer.

The processor runs always. The engine is used only where a strategy looks at what the vision tower computes: vLLM
encodes while it prefills, so such a preview is one prefill, from which one token is sampled and dropped. It is counted
as what it is, in vLLM's metrics and in ours, and it warms the caches for the question itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi.responses import JSONResponse, Response
from starlette.requests import Request

from vllm_prune.budget.canonical import VisualSpec
from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import MODALITIES
from vllm_prune.kv.group_budgets import GroupBudgets
from vllm_prune.request import current
from vllm_prune.signals import FRONT_END
from vllm_prune.support.kv import predicted
from vllm_prune.telemetry.usage_report import visual_report
from vllm_prune.vllm_compat.chat_prefill import prefill, prepare_chat
from vllm_prune.vllm_compat.worker_calls import fetch_kept


async def preview(request: Any, raw_request: Request) -> Response:
    """Answer `POST /v1/pruning/preview`.

    Args:
        request: vLLM's `ChatCompletionRequest`; what concerns the answer has no effect.
        raw_request: the HTTP request, whose budget has been decided and which has been admitted.
    """
    context = current()
    assert context is not None, "a middleware sets a context for every request"
    assert context.decision is not None, "a middleware decides before the route runs"
    context.decision = replace(context.decision, return_kept=True)
    prefilled = _needs_tower(context.decision.spec)
    handler = raw_request.app.state.openai_serving_chat
    prompt = await prepare_chat(handler, request, prefilled)
    if not isinstance(prompt, dict):
        return JSONResponse(prompt.model_dump(), status_code=prompt.error.code)
    # With what the operator's cap has changed by now.
    decision = context.decision
    if prefilled and context.items:
        # Nothing is decoded, so that nothing is evicted.
        context.decision = replace(decision, kv=None)
        try:
            await prefill(handler, request, raw_request, prompt, f"preview-{context.engine_id()}")
        finally:
            context.decision = decision
        await fetch_kept(handler.engine_client, context)
    tokens = len(prompt["prompt_token_ids"])
    unpruned = tokens + sum(item["input_tokens"] - item["kept_tokens"] for item in context.items)
    budgets = None
    if decision.kv is not None:
        places = [place for placed in prompt.get("mm_placeholders", {}).values() for place in placed]
        budgets = predicted(decision.kv, tokens, places, handler.engine_client.vllm_config)
    return JSONResponse(
        {
            "object": "pruning.preview",
            "visual": visual_report(context.items, return_kept=True),
            "prompt_tokens": tokens,
            "prompt_tokens_unpruned": unpruned,
            "kv": None if budgets is None else _kv(budgets, unpruned),
            "clamped": [*context.clamped(), *([] if budgets is None else budgets.clamped())],
        }
    )


def _needs_tower(spec: VisualSpec | None) -> bool:
    """Whether what the vision tower computes may decide; else the front end does, or nothing is pruned."""
    if spec is None:
        return False
    if spec.limit is not None:
        # Items without a budget of their own may be pruned by the default strategy.
        return True
    parts = [part for part in map(spec.part, MODALITIES) if part is not None]
    return any(not VISUAL.strategy_class(part.strategy).needs & FRONT_END for part in parts)


def _kv(budgets: GroupBudgets, unpruned: int) -> dict[str, Any]:
    return {
        "strategy": budgets.spec.strategy,
        "prompt_tokens": budgets.prompt,
        "kept_tokens": budgets.kept_tokens,
        "rows_unpruned": unpruned,
        "rows_kept": budgets.kept_tokens,
    }
