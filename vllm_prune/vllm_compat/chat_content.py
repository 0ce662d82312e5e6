"""Content parts of chat messages: vLLM's parsers and item trackers, wrapped.

vLLM's parsers also serve its Python interface, where a part may hold a picture as an object. From a client's JSON such
a part holds text or numbers, and a model's processor takes text for a URL that it fetches by itself, without limits.
Every route builds its items through these classes, whatever the shape of its body, so the checks are here.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from vllm.exceptions import VLLMError, VLLMValidationError

from .signatures import holder, load, wrap

logger = logging.getLogger("vllm.vllm_prune")
JSON_TYPES = (str, bytes, int, float, list, dict)
"""Python types that a request body is parsed into; None is the content of a part that has a `uuid` only."""
_PART = "parse_chat_message_content_part"
_PARSERS = ("MultiModalContentParser", "AsyncMultiModalContentParser")
_TRACKERS = ("MultiModalItemTracker", "AsyncMultiModalItemTracker")
_EXAMPLE = 'write {{"type": "{0}_url", "{0}_url": {{"url": "https://..."}}}}, or a data: URL'


class ContentError(VLLMValidationError):
    """Content parts that are not taken: HTTP 400 that blames the field with the media."""

    def __init__(self, message: str) -> None:
        super().__init__(message, parameter=_media_param())

    def __str__(self) -> str:
        return str(self.args[0])


class TooManyItems(ContentError):
    """More items of a modality in one prompt than the model, or `--limit-mm-per-prompt`, allows.

    Args:
        modality: vLLM's name of it.
        count: items in the prompt.
        limit: the most that are taken.
        operator: whether a larger `--limit-mm-per-prompt` would help.
    """

    def __init__(self, modality: str, count: int, limit: int, operator: bool) -> None:
        if limit:
            text = f"the prompt holds {count} parts of type {modality}, and at most {limit} are taken; send fewer"
        else:
            text = f"the prompt holds {count} parts of type {modality}, and none is taken; leave them out"
        super().__init__(text + (", or raise the server's --limit-mm-per-prompt" if operator else ""))
        self.modality, self.limit, self.operator = modality, limit, operator


def patch_chat_content() -> None:
    """Check content parts and their number before anything is fetched. Idempotent."""
    module: Any = holder(_PART)
    if getattr(module, "vllm_prune_patched", False):
        return
    # The names come from vLLM's class: a kind of part that a later version adds is checked, too.
    names = [name for name in vars(holder("BaseMultiModalContentParser.parse_image")) if name.startswith("parse_")]
    for parser in map(load, _PARSERS):
        for name in names:
            setattr(parser, name, _checked(getattr(parser, name)))
    wrap(_PART, lambda parse: _explained(parse, frozenset(load("MM_PARSER_MAP"))))
    for tracker in (holder(f"{name}.resolve_items") for name in _TRACKERS):
        tracker.add = _counting(tracker.add)
        tracker.resolve_items = _limited(tracker.resolve_items)
    module.vllm_prune_patched = True
    wrap("BaseProcessingInfo.validate_num_items", _counted)


def _checked(parse: Callable[..., None]) -> Callable[..., None]:
    """A method `parse_*(content, uuid)` that refuses content which the media connector would not get."""
    argument = list(inspect.signature(parse).parameters)[1]

    @wraps(parse)
    def check(self: Any, content: Any = None, uuid: str | None = None, *rest: Any, **kwargs: Any) -> None:
        content = kwargs.pop(argument, content)
        if not content and uuid is None and argument != "data":
            raise ContentError(f"a content part with {argument} is empty; {_advice(argument)}")
        if content is not None and not acceptable(argument, content):
            raise ContentError(f"a content part with {argument} is not taken as it is; {_advice(argument)}")
        # The embeddings of a prompt have no uuid; those of a video may come with those of its sound.
        parse(self, *((content,) if uuid is None and not rest else (content, uuid, *rest)), **kwargs)

    return check


def acceptable(argument: str, content: Any) -> bool:
    """Whether content may go to a parser's method, by the name that vLLM gives the method's argument.

    Args:
        argument: `*_url` and `input_audio` lead to the media connector, `*_embeds` and `data` to tensors that vLLM
            takes only where the operator enabled them. Whatever else there is takes Python objects.
        content: what the client or a Python caller gave.
    """
    if argument.endswith("_url"):
        return isinstance(content, str)
    if argument == "input_audio":
        return isinstance(content, dict) and all(isinstance(content.get(key, ""), str) for key in ("data", "format"))
    if argument.endswith("_embeds"):
        return isinstance(content, (str, dict))
    if argument == "data":
        return isinstance(content, str)
    return not isinstance(content, JSON_TYPES)


def _advice(argument: str) -> str:
    modality = next((name for name in ("image", "video", "audio") if name in argument), "image")
    if argument == "input_audio":
        return 'write {"type": "input_audio", "input_audio": {"data": "<base64>", "format": "wav"}}'
    if argument.endswith("_embeds") or argument == "data":
        return "give a tensor in base64"
    return _EXAMPLE.format(modality)


def _explained(parse: Callable[..., Any], kinds: frozenset[str]) -> Callable[..., Any]:
    """The parser of one part, whose internal errors become a refusal that says what a part looks like."""

    @wraps(parse)
    def explain(part: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return parse(part, *args, **kwargs)
        except VLLMError:
            raise
        except Exception as error:  # pydantic's, or whatever a wrong type leads to
            logger.debug("content part refused: %.500r", error)
            kind = part.get("type") if isinstance(part, dict) else None
            if not isinstance(kind, str) or kind not in kinds:
                raise ContentError(
                    'a content part is malformed; write {"type": ..., ...} as OpenAI\'s API has it'
                ) from None
            raise ContentError(f"a content part of type {kind} is malformed; {_form_of(kind)}") from None

    return explain


def _form_of(kind: str) -> str:
    if kind == "input_image":
        return 'write {"type": "input_image", "detail": "auto", "image_url": "https://..."}, or a data: URL'
    return _advice(kind) if kind.endswith(("_url", "_audio", "_pil", "_embeds")) else "see OpenAI's API for its fields"


def _counting(add: Callable[..., Any]) -> Callable[..., Any]:
    """A tracker's `add` that counts on past the limit, so that the refusal can say how many there are."""

    @wraps(add)
    def count(self: Any, modality: str, item: Any) -> Any:
        try:
            return add(self, modality, item)
        except TooManyItems as error:
            excess = vars(self).setdefault("vllm_prune_excess", {})
            excess.setdefault(error.modality, (error, Counter()))[1][modality] += 1
            return None

    return count


def _limited(resolve: Callable[..., Any]) -> Callable[..., Any]:
    """A tracker's `resolve_items` that counts the items before it loads any."""
    if inspect.iscoroutinefunction(resolve):
        loading: Callable[..., Awaitable[Any]] = resolve

        @wraps(resolve)
        async def limit_async(self: Any) -> Any:
            _check_count(self)
            return await loading(self)

        return limit_async

    @wraps(resolve)
    def limit(self: Any) -> Any:
        _check_count(self)
        return resolve(self)

    return limit


def _check_count(tracker: Any) -> None:
    items = {name: len(group) for name, group in tracker._items_by_modality.items() if name != "prompt_embeds"}
    excess = vars(tracker).get("vllm_prune_excess", {})
    for error, extra in excess.values():
        raise TooManyItems(error.modality, error.limit + extra.total(), error.limit, error.operator)
    most = _max_items()
    if most is not None and sum(items.values()) > most:
        from ..telemetry import metrics

        metrics.count_media_rejected("items")
        raise ContentError(
            f"the request holds {sum(items.values())} media, and at most {most} are taken; send fewer, or raise "
            "`media.max_items` in the server's configuration"
        )


def _max_items() -> int | None:
    """The operator's limit, None where another media connector is in use, as for all of section `media`."""
    from vllm import envs

    from ..config.load import configuration
    from .media_connector import MEDIA_CONNECTOR

    return configuration().media.max_items if envs.VLLM_MEDIA_CONNECTOR == MEDIA_CONNECTOR else None


def _counted(validate: Callable[..., None]) -> Callable[..., None]:
    """`BaseProcessingInfo.validate_num_items` with a refusal that says what to change."""

    @wraps(validate)
    def check(self: Any, modality: str, num_items: int) -> None:
        try:
            validate(self, modality, num_items)
        except (ValueError, VLLMError):
            supported = self.supported_mm_limits.get(modality, 0)
            limit = self.allowed_mm_limits.get(modality, 0)
            if num_items <= limit:
                raise
            raise TooManyItems(modality, num_items, limit, supported is None or limit < supported) from None

    return check


def _media_param() -> str:
    from ..request import current

    context = current()
    return context.media_param if context is not None else "messages"
