"""`ServingTokens.serve_tokens`, wrapped: processed media that clients send to `/inference/v1/generate`.

There a request may carry cache keys and tensors of media, made by another server's `/render`. vLLM hands them to the
engine as they are: a key replaces what another client has sent, and a tensor of the wrong shape ends the engine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import wraps
from typing import Any

from ..budget.errors import BudgetError
from ..request import current, reject
from ..visual.frontend.media_uuids import MediaUuidError, MissingMediaError, OwnedUuid
from .base_renderer import UUIDS
from .request_owner import owner_secret
from .signatures import holder, load


def patch_serving_tokens() -> None:
    """Check what comes with a request of tokens before it is decoded. Idempotent."""
    serving = holder("ServingTokens.serve_tokens")
    if getattr(serving, "vllm_prune_patched", False):
        return
    original = serving.serve_tokens

    @wraps(original)
    async def serve_tokens(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        _check_parts(request.content_parts or ())
        if request.features is not None:
            _check_features(self, request.features)
        try:
            return await original(self, request, *args, **kwargs)
        except BudgetError as error:
            reject("invalid_budget")
            raise _error(str(error), error.param) from None

    serving.serve_tokens = serve_tokens
    serving.vllm_prune_patched = True


def _check_parts(parts: Sequence[Mapping[str, Any]]) -> None:
    for part in parts:
        if not isinstance(part.get("url"), str | None):
            raise _error("the url of a content part is text, or null where its uuid is enough", "content_parts")


def _check_features(serving: Any, features: Any) -> None:
    """Refuse processed media of clients that are not trusted; bind those of trusted ones to tenant and content.

    Raises:
        VLLMValidationError: media that are not taken, cannot be read, or whose key stands for other content.
    """
    context, media = current(), serving.model_config.multimodal_config
    if context is not None and (media is None or not media.enable_mm_embeds):
        raise _refusal(
            "processed media are not taken, as tensors of a wrong shape end the engine; send them in content_parts, or "
            "start the server with --enable-mm-embeds where all clients are trusted"
        )
    _check_items(features)
    if context is None:
        return
    owner, payloads = owner_secret(context), features.kwargs_data or {}
    for modality, hashes in features.mm_hashes.items():
        contents = payloads.get(modality) or [None] * len(hashes)
        for i, (name, content) in enumerate(zip(hashes, contents, strict=True)):
            hashes[i] = _key(modality, i, OwnedUuid(name, f"features {owner}"), content)


def _key(modality: str, index: int, name: OwnedUuid, content: str | None) -> str:
    digest = None if content is None else hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()
    try:
        return UUIDS.key(modality, index, name, digest)
    except MissingMediaError:
        # Nothing was sent under this key: it names what the server itself has processed, whose keys follow from the
        # content and are known to those who have it.
        return name.uuid
    except MediaUuidError as error:
        raise _refusal(str(error)) from None


def _check_items(features: Any) -> None:
    """Decode every item once, so that what cannot be read is refused here and not in the engine."""
    from ..visual.item_plan import field_name

    try:
        items = load("mm_kwargs_from_features")(features)
    except Exception:
        # Base64, msgpack and tensors of a client's: whatever is wrong with them, it is the client's to mend.
        raise _refusal("an item of features cannot be decoded; send it as /render gave it") from None
    for modality, each in items.items():
        for item, placed in zip(each, features.mm_placeholders[modality], strict=True):
            element = None if item is None else item.get(field_name(modality))
            if element is not None:
                _check_plan(element.data, placed.length)


def _check_plan(data: Any, tokens: int) -> None:
    from ..catalogue import VISUAL
    from ..visual.item_plan import decode

    try:
        plan = decode(data)
        if plan is None:
            return
        VISUAL.create(plan.strategy, plan.option_values)
        fits = 1 <= int(plan.count) <= tokens
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise _refusal("the pruning plan of an item is malformed; send it as /render gave it") from None
    if not fits:
        raise _refusal("the pruning plan of an item does not fit its placeholder")


def _refusal(message: str) -> Exception:
    reject("features")
    return _error(message, "features")


def _error(message: str, parameter: str) -> Exception:
    from vllm.exceptions import VLLMValidationError

    return VLLMValidationError(message, parameter=parameter)
