"""`BaseRenderer` and `BaseMultiModalProcessor`, wrapped: what clients say about media is checked before it is used.

Every route and every model passes here, adapted or not: media uuids become keys that belong to their owner and their
content, and a budget among the processor's options has to be the one that was decided for the request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

from ..request import RequestContext, current, reject
from ..visual.frontend.media_uuids import MediaUuidError, MediaUuids, MissingMediaError, OwnedUuid
from .request_owner import CONTEXT, owner_secret, serves_http
from .signatures import holder, load

UUIDS = MediaUuids()
"""The uuids of this process's clients."""

OPTIONS = "mm_processor_kwargs"


def patch_base_renderer() -> None:
    """Wrap the step between tokenised prompts and the multimodal processor. Idempotent."""
    renderer = holder("BaseRenderer._process_tokens")
    if getattr(renderer, "vllm_prune_patched", False):
        return
    processor = holder("BaseMultiModalProcessor._cached_apply_hf_processor")
    renderer._process_tokens = _checked(renderer._process_tokens)
    renderer._process_tokens_async = _checked_async(renderer._process_tokens_async)
    renderer._process_mm_uuids = _with_bound_uuids(renderer._process_mm_uuids)
    processor._cached_apply_hf_processor = _with_all_items(processor._cached_apply_hf_processor)
    renderer.vllm_prune_patched = True


def patch_offline_renderer() -> None:
    """Wrap that step in a process without a server, where budgets come among the processor's options. Idempotent."""
    renderer = holder("BaseRenderer._process_tokens")
    if getattr(renderer._process_tokens, "vllm_prune_settles", False) or getattr(renderer, "vllm_prune_patched", False):
        return
    renderer._process_tokens = _settling(renderer._process_tokens)
    renderer._process_tokens_async = _settling(renderer._process_tokens_async)


def _settling(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def process(self: Any, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        # What the original returns may be awaited.
        return original(self, _settled(self, prompt), *args, **kwargs)

    process.vllm_prune_settles = True  # type: ignore[attr-defined]
    return process


def _settled(renderer: Any, prompt: Any) -> Any:
    """The prompt of an operator's own call; what its budget leaves to the server is settled."""
    from ..budget.canonical import KEY, VisualSpec
    from ..support.choices import settled_spec

    options = prompt.get(OPTIONS) or {}
    if KEY not in options:
        return prompt
    spec = settled_spec(VisualSpec.from_wire(options[KEY]), renderer.config)
    return {**prompt, OPTIONS: {**options, KEY: spec.wire()}}


def _checked(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def process(self: Any, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        context = current()
        prompt = _with_owners(_with_budget(self, prompt, context), owner_secret(context))
        with _readable_errors(prompt):
            return _with_context(original(self, prompt, *args, **kwargs), context)

    return process


def _checked_async(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    async def process(self: Any, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        context = current()
        prompt = _with_owners(_with_budget(self, prompt, context), owner_secret(context))
        with _readable_errors(prompt):
            return _with_context(await original(self, prompt, *args, **kwargs), context)

    return process


def _with_context(prepared: Any, context: RequestContext | None) -> Any:
    if context is not None:
        prepared[CONTEXT] = context
    return prepared


def _with_budget(renderer: Any, prompt: Any, context: RequestContext | None) -> Any:
    """The prompt with the budget of its request among the processor's options, and no other one.

    Without a server the caller is the operator, who passes the budget of `LLM.generate` in just this way.

    Raises:
        VLLMValidationError: a client has set what is the server's to set, or the model cannot be pruned.
    """
    from ..budget.canonical import KEY

    if not serves_http(renderer):
        return _settled(renderer, prompt)
    options = prompt.get(OPTIONS) or {}
    spec = None if context is None or context.decision is None else context.decision.spec
    wire = None if spec is None else spec.wire()
    if KEY in options:
        if wire is None or options[KEY] != wire:
            raise _refusal("internal_key", f"{KEY} is set by the server; ask for a budget with `pruning`", OPTIONS)
        return prompt
    if wire is None or not prompt.get("multi_modal_data"):
        return prompt
    # A route of vLLM's that prepares media without the wrapper of `OnlineRenderer`.
    from ..support.visual import has_adapted_processor, unsupported_model

    if not has_adapted_processor(renderer):
        raise _refusal("invalid_budget", unsupported_model(renderer.model_config).text, "pruning.visual")
    return {**prompt, OPTIONS: {**options, KEY: wire}}


def _refusal(reason: str, message: str, parameter: str) -> Exception:
    from vllm.exceptions import VLLMValidationError

    reject(reason)
    return VLLMValidationError(message, parameter=parameter)


def _with_owners(prompt: Any, owner: str) -> Any:
    """The prompt with every uuid bound to its owner.

    Here, because the processor runs in a thread that knows of no request.

    Raises:
        VLLMValidationError: a uuid that is no text.
    """
    by_modality = prompt.get("multi_modal_uuids")
    if not by_modality:
        return prompt
    owned = {
        modality: [_owned(uuid, owner) for uuid in ([uuids] if isinstance(uuids, str) else uuids)]
        for modality, uuids in by_modality.items()
    }
    return {**prompt, "multi_modal_uuids": owned}


def _owned(uuid: Any, owner: str) -> OwnedUuid | None:
    if uuid is None:
        return None
    if not isinstance(uuid, str):
        raise _refusal("media_uuid", "the uuid of a media item is text", "uuid")
    return OwnedUuid(uuid, owner)


@contextmanager
def _readable_errors(prompt: Mapping[str, Any]) -> Iterator[None]:
    """Answer what is wrong with a uuid with HTTP 400, and say which uuid and which budget."""
    try:
        yield
    except MediaUuidError as error:
        text = str(error)
        if isinstance(error, MissingMediaError):
            text = error.text(*_circumstances(prompt, error.modality, error.index))
        raise _refusal("media_uuid", text, "uuid") from None


def _circumstances(prompt: Mapping[str, Any], modality: str, index: int) -> tuple[str | None, str | None]:
    """Uuid and budget of an item, None each where there is none."""
    from ..budget.canonical import KEY, VisualSpec

    names = (prompt.get("multi_modal_uuids") or {}).get(modality) or []
    name = names[index] if index < len(names) else None
    wire = (prompt.get(OPTIONS) or {}).get(KEY)
    spec = None if wire is None else VisualSpec.from_wire(wire)
    part = None if spec is None or modality not in ("image", "video") else spec.part(modality)  # type: ignore[arg-type]
    if spec is None or part is None:
        return (name and name.uuid, None)
    amount = f"keep {part.keep}" if part.keep is not None else f"max_tokens {part.max_tokens or spec.max_tokens}"
    return (name and name.uuid, f"{amount} ({part.strategy})")


def _with_bound_uuids(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def process(self: Any, mm_data: Any, mm_data_items: Any, *args: Any, **kwargs: Any) -> Any:
        by_modality = original(self, mm_data, mm_data_items, *args, **kwargs)
        return {modality: _keys(self, modality, uuids, mm_data_items) for modality, uuids in by_modality.items()}

    return process


def _keys(renderer: Any, modality: str, uuids: Sequence[Any], data_items: Mapping[str, Any]) -> list[str | None]:
    """Cache keys in place of owned uuids; what vLLM itself has named stays."""
    if not any(isinstance(uuid, OwnedUuid) for uuid in uuids):
        return list(uuids)
    items = data_items[modality].get_all_items_for_hash() if modality in data_items else [None] * len(uuids)
    return [
        UUIDS.key(modality, i, uuid, _digest(renderer, item)) if isinstance(uuid, OwnedUuid) else uuid
        for i, (uuid, item) in enumerate(zip(uuids, items, strict=True))
    ]


def _digest(renderer: Any, item: Any) -> str | None:
    """Digest of a media item as vLLM takes it for its cache keys; None for an item that was not sent."""
    if item is None:
        return None
    algorithm = renderer.model_config.multimodal_config.mm_hasher_algorithm
    digest: str = load("MultiModalHasher.hash_kwargs")(algorithm, item=item)
    return digest


def _with_all_items(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def process(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        _require_items(self, inputs)
        return original(self, inputs, *args, **kwargs)

    return process


def _require_items(processor: Any, inputs: Any) -> None:
    """Raise `MissingMediaError` for an item that was sent by its uuid only and is not in the processor cache."""
    items = {modality: media.get_all_items_for_hash() for modality, media in inputs.mm_data_items.items()}
    missing = [(modality, i) for modality, each in items.items() for i, item in enumerate(each) if item is None]
    if not missing:
        return
    if inputs.cache is None or any(media.get_passthrough_data() for media in inputs.mm_data_items.values()):
        raise MissingMediaError(*missing[0], "this server keeps no such media")
    hashes = processor._get_mm_hashes(inputs)
    for modality, i in missing:
        if not inputs.cache.is_cached([hashes[modality][i]])[0]:
            raise MissingMediaError(modality, i, "this server does not hold it")
