"""`OnlineRenderer` and `BaseRenderer`, wrapped: a request's visual budget reaches the multimodal processor.

vLLM refuses processor kwargs from clients and offers no hook between that check and the processor. Every route
prepares its prompts with `BaseRenderer.render_chat_async` or `render_cmpl_async`, below that check; the budget of the
current request goes in there, and the processor's reports come out. `OnlineRenderer.preprocess_chat` and
`preprocess_cmpl` are wrapped for what needs vLLM's request model.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any

from .signatures import holder

if TYPE_CHECKING:
    from ..request import RequestContext

OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
ONLY_SERVED = "kept tokens are returned by vllm-prune serve alone; drop return_kept, or start the server with it"


def patch_renderer() -> None:
    """Let the visual budget of a request reach the processor. Idempotent."""
    from ..request import timed

    online = holder("OnlineRenderer.preprocess_chat")
    base = holder("BaseRenderer.render_chat_async")
    if getattr(online, "vllm_prune_patched", False):
        return
    for name in ("preprocess_chat", "preprocess_cmpl"):
        setattr(online, name, timed("preprocess", _with_context(getattr(online, name))))
    for name in ("render_chat_async", "render_cmpl_async"):
        setattr(base, name, _with_budget(getattr(base, name)))
    online.vllm_prune_patched = True


def _with_context(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @wraps(original)
    async def preprocess(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        _ensure_context(self.renderer.config, request)
        result = await original(self, request, *args, **kwargs)
        _limit_outputs(request, result, self.model_config.max_model_len)
        return result

    return preprocess


def _ensure_context(vllm_config: Any, request: Any) -> None:
    """Make the request's context under plain `vllm serve`, where no middleware of ours has made one."""
    from ..budget.errors import BudgetError
    from ..policy import BOTH, XARG, config_for, decide, field_of_xargs
    from ..request import CURRENT, RequestContext, current
    from ..support.choices import settled

    context = current()
    if context is not None and (context.prepared is None or context.prepared is request):
        return
    context = RequestContext(prepared=request)
    CURRENT.set(context)
    field, xarg = (getattr(request, "model_extra", None) or {}).get(XARG), _xarg(request)
    try:
        if field is not None and xarg is not None:
            raise BudgetError(BOTH, f"vllm_xargs.{XARG}")
        decision = decide(config_for(None), field if xarg is None else field_of_xargs(xarg))
        if decision.return_kept:
            raise BudgetError(ONLY_SERVED, "pruning.visual.return_kept")
        context.decide(settled(decision, vllm_config))
    except BudgetError as error:
        raise _refused(error) from None


def _xarg(request: Any) -> Any:
    from ..policy import XARG

    return (getattr(request, "vllm_xargs", None) or {}).get(XARG)


def _with_budget(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @wraps(original)
    async def render(self: Any, *args: Any, prompt_extras: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
        from ..budget.errors import BudgetError
        from ..request import current

        context = current()
        if context is None or context.decision is None:
            return await original(self, *args, prompt_extras=prompt_extras, **kwargs)
        try:
            extras = _with_spec(self, context, prompt_extras)
            result = await original(self, *args, prompt_extras=extras, **kwargs)
            _collect(context, result)
        except BudgetError as error:
            raise _refused(error) from None
        return result

    return render


def _refused(error: Any) -> Exception:
    """The error that vLLM answers with 400; counts the refusal."""
    from vllm.exceptions import VLLMValidationError

    from ..request import reject

    reject("invalid_budget")
    return VLLMValidationError(str(error), parameter=error.param)


def _with_spec(renderer: Any, context: RequestContext, extras: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Prompt extras with the visual budget among the processor kwargs. Raises `BudgetError`."""
    from ..budget.canonical import KEY, VisualSpec
    from ..budget.errors import BudgetError

    decision = context.decision
    processor_kwargs = (extras or {}).get("mm_processor_kwargs") or {}
    if KEY in processor_kwargs:
        raise BudgetError(f"{KEY} is set by the server", "mm_processor_kwargs")
    if decision is None:
        return extras
    if decision.kv is not None:
        _refuse_unsupported_kv(renderer.config, context)
    if decision.spec is not None or decision.return_kept:
        _refuse_unsupported_visual(renderer, decision.spec or VisualSpec())
    if decision.spec is None:
        return extras
    return {**(extras or {}), "mm_processor_kwargs": {**processor_kwargs, KEY: decision.spec.wire()}}


def _refuse_unsupported_visual(renderer: Any, spec: Any) -> None:
    """Raise `BudgetError` for a visual budget that cannot be honoured here."""
    from ..support.visual import config_refusals, has_adapted_processor, tower_refusal, unsupported_model

    if not has_adapted_processor(renderer):
        raise unsupported_model(renderer.model_config).error()
    if findings := config_refusals(renderer.config):
        raise findings[0].error()
    if finding := tower_refusal(renderer.config, spec):
        raise finding.error()


def _refuse_unsupported_kv(vllm_config: Any, context: RequestContext) -> None:
    """Raise `BudgetError` for a KV budget that cannot be honoured here."""
    from ..support import kv as support
    from ..telemetry import metrics

    assert context.decision is not None
    assert context.decision.kv is not None
    finding = support.refusal(vllm_config)
    if finding is None and getattr(context.prepared, "use_beam_search", False):
        finding = support.beam_search()
    finding = finding or support.missing(context.decision.kv, vllm_config)
    if finding is not None:
        metrics.count_kv_skipped(finding.cause)
        raise finding.error()


def _prompts_of(result: Any) -> list[dict[str, Any]]:
    """The prepared prompts, from what either kind of method returns."""
    prompts = result[1] if isinstance(result, tuple) else result
    return [prompt for prompt in prompts if isinstance(prompt, dict)]


def _collect(context: RequestContext, result: Any) -> None:
    """Take the processor's reports off the prepared prompts, and record them. Raises `BudgetError`."""
    from ..visual.frontend.processor import REPORT

    prompts = _prompts_of(result)
    items = [item for prompt in prompts for item in prompt.pop(REPORT, ())]
    if context.reservation is not None:
        kept = sum(item["kept_tokens"] for item in items) if items else None
        context.reservation.resize(kept, [len(prompt.get("prompt_token_ids", ())) for prompt in prompts])
    context.record_items(items)


def _limit_outputs(request: Any, result: Any, model_length: int) -> None:
    from ..visual.frontend.processor import MAX_OUTPUT

    for prompt in _prompts_of(result):
        room = prompt.pop(MAX_OUTPUT, None)
        # The usual case: the context ends before the rotary table does.
        if room is not None and room < model_length - len(prompt["prompt_token_ids"]):
            _limit_output(request, room)


def _limit_output(request: Any, room: int) -> None:
    """Keep the answer inside the rotary table; vLLM itself only counts tokens, which pruning has made fewer."""
    fields = [name for name in OUTPUT_LIMITS if name in type(request).model_fields]
    limited = [name for name in fields if getattr(request, name) is not None]
    for name in limited or fields[:1]:
        current = getattr(request, name)
        setattr(request, name, room if current is None else min(current, room))
