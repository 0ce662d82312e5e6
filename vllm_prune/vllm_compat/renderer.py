"""Every private name of vLLM that we touch, and the check that it is the vLLM we know.

Adapters of model families subclass vLLM's models in `visual/models`; everything else goes through here.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..request import RequestContext

OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_RENDERER = "vllm.renderers.online_renderer"


def patch_renderer() -> None:
    """Let the budget of a request reach the processor.

    vLLM refuses processor kwargs from clients, and offers no hook between that check and the processor.
    The two methods of `OnlineRenderer` that prepare prompts are wrapped: the client's own kwargs are
    refused as before, then the validated budget goes in.
    """
    from ..request import timed

    renderer = importlib.import_module(_RENDERER).OnlineRenderer
    if getattr(renderer, "vllm_prune_patched", False):
        return
    for name in ("preprocess_chat", "preprocess_cmpl"):
        setattr(renderer, name, timed("preprocess", _with_budget(getattr(renderer, name))))
    renderer.vllm_prune_patched = True


def _with_budget(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @wraps(original)
    async def prepare(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm.entrypoints.generate.base.protocol import validate_request_mm_kwargs
        from vllm.exceptions import VLLMValidationError

        from ..budget.errors import BudgetError
        from ..request import reject

        own = getattr(request, "mm_processor_kwargs", None)
        validate_request_mm_kwargs(
            mm_processor_kwargs=own,
            media_io_kwargs=getattr(request, "media_io_kwargs", None),
            trust_request_mm_kwargs=self.trust_request_mm_kwargs,
        )
        try:
            context = _context_of(request)
            spec = context.decision.spec if context.decision is not None else None
            _check_kv(self.renderer.config, request, context)
            if spec is None:
                result = await original(self, request, *args, **kwargs)
            else:
                result = await _prepare_pruned(self, original, request, own, spec, args, kwargs)
            _collect(context, request, result, self.model_config.max_model_len)
        except BudgetError as error:
            reject("invalid_budget")
            raise VLLMValidationError(str(error), parameter=error.param) from None
        return result

    return prepare


def _context_of(request: Any) -> RequestContext:
    """The request's context with a decision; made here under plain `vllm serve`, where no middleware of ours runs."""
    from ..budget.errors import BudgetError
    from ..policy import XARG, config_for, decide, field_of_xargs
    from ..request import CURRENT, RequestContext, current

    context = current()
    if context is None or (context.prepared is not None and context.prepared is not request):
        context = RequestContext(prepared=request)
        CURRENT.set(context)
    value = (getattr(request, "vllm_xargs", None) or {}).get(XARG)
    decided = context.decision
    if value is not None and context.prepared is None and decided is not None and (decided.spec or decided.kv):
        raise BudgetError("give `pruning` or `vllm_xargs.pruning`, not both", "vllm_xargs.pruning")
    if value is not None or context.decision is None:
        field = None if value is None else field_of_xargs(value)
        context.decide(decide(config_for(context.tenant), field))
    return context


def _check_kv(vllm_config: Any, request: Any, context: RequestContext) -> None:
    """Refuse a KV budget that cannot be honoured; the input processor's wrapper attaches those that can."""
    from ..support import kv as support
    from ..telemetry import metrics

    spec = context.decision.kv if context.decision is not None else None
    if spec is None:
        return
    finding = support.refusal(vllm_config)
    if finding is None and getattr(request, "use_beam_search", False):
        finding = support.beam_search()
    finding = finding or support.missing(spec, vllm_config)
    if finding is not None:
        metrics.count_kv_skipped(finding.cause)
        raise finding.error()


async def _prepare_pruned(
    renderer: Any,
    original: Callable[..., Awaitable[Any]],
    request: Any,
    own: dict[str, Any] | None,
    spec: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    from ..budget.canonical import KEY
    from ..budget.errors import BudgetError
    from ..support.visual import config_refusals, has_adapted_processor, tower_refusal, unsupported_model

    if not has_adapted_processor(renderer.renderer):
        raise unsupported_model(renderer.model_config).error()
    if findings := config_refusals(renderer.renderer.config):
        raise findings[0].error()
    if finding := tower_refusal(renderer.renderer.config, spec):
        raise finding.error()
    if KEY in (own or {}):
        raise BudgetError(f"{KEY} is set by the server", "mm_processor_kwargs")
    trusting = copy.copy(renderer)
    trusting.trust_request_mm_kwargs = True
    request.mm_processor_kwargs = {**(own or {}), KEY: spec.wire()}
    try:
        return await original(trusting, request, *args, **kwargs)
    finally:
        request.mm_processor_kwargs = own


def _collect(context: RequestContext, request: Any, result: Any, model_length: int) -> None:
    """Take the processor's reports off the prepared prompts and record them."""
    from ..visual.frontend.processor import MAX_OUTPUT, REPORT

    prompts = [prompt for prompt in (result[1] if isinstance(result, tuple) else result) if isinstance(prompt, dict)]
    for prompt in prompts:
        room = prompt.pop(MAX_OUTPUT, None)
        # The usual case: the context ends before the rotary table does.
        if room is not None and room < model_length - len(prompt["prompt_token_ids"]):
            _limit_output(request, room)
    items = [item for prompt in prompts for item in prompt.pop(REPORT, ())]
    if context.reservation is not None:
        kept = sum(item["kept_tokens"] for item in items) if items else None
        context.reservation.resize(request, kept, [len(prompt.get("prompt_token_ids", ())) for prompt in prompts])
    context.record_items(items)


def _limit_output(request: Any, room: int) -> None:
    """Keep the answer inside the rotary table; vLLM itself only counts tokens, which pruning has made fewer."""
    fields = [name for name in OUTPUT_LIMITS if name in type(request).model_fields]
    given = [name for name in fields if getattr(request, name) is not None]
    for name in given or fields[:1]:
        current = getattr(request, name)
        setattr(request, name, room if current is None else min(current, room))
