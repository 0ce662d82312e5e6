"""What a request needs at most, from its JSON, before any of its media was fetched or decoded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vllm_prune.budget.canonical import VisualSpec
from vllm_prune.budget.kv import KvSpec
from vllm_prune.policy import Decision

from ..openai.routes import Route
from .estimate import Media, Sizes, kept_at_most, media_of, rows_held
from .ledger import Amount

# Chat templates add a system prompt of their own; their marks are shorter than the JSON around a message.
TEMPLATE_TOKENS = 256
# Reads "3" and 3.0 as 3, as vLLM's request models do.
_INTEGER = TypeAdapter(int)


@dataclass(frozen=True)
class PromptBound:
    """Most that one prompt can come to: kept visual tokens, and tokens in all."""

    visual: int
    tokens: int


@dataclass(frozen=True)
class Demand:
    """Most that a request can need.

    Attributes:
        prompts: bounds of its prompts.
        choices: answers per prompt.
        output: most output tokens of an answer; None where only the context bounds them.
        kv: its KV budget.
        context: most tokens of a prompt with its output.
        decodes: whether it holds KV cache at all.
        grouped: whether the cache has several groups of layers.
    """

    prompts: Sequence[PromptBound]
    choices: int
    output: int | None
    kv: KvSpec | None
    context: int
    decodes: bool
    grouped: bool = False

    def rows(self, prompt: int) -> int:
        """Rows of KV cache that the answers to a prompt of that many tokens hold."""
        if not self.decodes:
            return 0
        return rows_held(self.choices, self.output, [prompt], self.kv, self.context, self.grouped)

    def of(self, prompts: Sequence[PromptBound]) -> Amount:
        """What these prompts need, without the request itself."""
        return Amount(0, sum(one.visual for one in prompts), sum(self.rows(one.tokens) for one in prompts))

    def amount(self) -> Amount:
        """What the request needs."""
        return Amount(1) + self.of(self.prompts)


def demand_of(
    document: Mapping[str, Any], characters: int, route: Route, decision: Decision | None, sizes: Sizes
) -> Demand:
    """Bounds of a request.

    Args:
        document: its JSON body, or the text fields of its form.
        characters: length of its body in bytes, no less than the tokens of its text.
        route: where it goes.
        decision: its budgets.
        sizes: of the served model.
    """
    decision = decision or Decision(None)
    settings = document.get("sampling_params") if route.rendered else document
    settings = settings if isinstance(settings, Mapping) else {}
    return Demand(
        _prompts(document, characters, route, decision.spec, sizes),
        max(1, _integer(settings.get("n")) or 1),
        _output_limit(settings, route),
        decision.kv,
        sizes.context,
        route.generates,
        sizes.grouped,
    )


def _integer(value: Any) -> int | None:
    try:
        return _INTEGER.validate_python(value)
    except ValidationError:
        return None


def _output_limit(settings: Mapping[str, Any], route: Route) -> int | None:
    """An upper bound of the length of an answer, None where the request has none."""
    if route.most_output is not None:
        return route.most_output
    if settings.get("prompt") is not None and settings.get("max_tokens") is None:
        # Prompts of `/v1/completions` know no other limit, also on a route that takes conversations, too.
        return None
    limits = [_integer(settings[name]) for name in route.output_limits if settings.get(name) is not None]
    numbers = [limit for limit in limits if limit is not None]
    # Which of two counts is for vLLM to say.
    return max(numbers) if len(numbers) == len(limits) and numbers else None


def _prompts(
    document: Mapping[str, Any], characters: int, route: Route, visual: VisualSpec | None, sizes: Sizes
) -> list[PromptBound]:
    if route.form or ("input" in route.prompts and document.get("previous_response_id") is not None):
        # Speech, and conversations that the server remembers.
        return [PromptBound(0 if route.form else sizes.context, sizes.context)]
    prompts: list[PromptBound] = []
    if route.rendered:
        tokens = document.get("token_ids")
        media = _bound(media_of(document.get("content_parts")), 0, visual, sizes)
        prompts.append(
            PromptBound(media.visual, min(sizes.context, media.visual + len(tokens)))
            if isinstance(tokens, list)
            else PromptBound(media.visual, sizes.context)
        )
    if "prompt" in route.prompts and any(document.get(name) is not None for name in ("prompt", "prompt_embeds")):
        prompts += _texts(document, sizes)
    for name in ("messages", "input"):
        if name in route.prompts and document.get(name) is not None:
            prompts += _conversations(document, name, characters, visual, sizes)
    return prompts or [_conversation(None, characters, visual, sizes)]


def _conversations(
    document: Mapping[str, Any], name: str, characters: int, visual: VisualSpec | None, sizes: Sizes
) -> list[PromptBound]:
    """One conversation, or the several of a batch."""
    messages = document[name]
    if not (isinstance(messages, list) and messages and all(isinstance(one, list) for one in messages)):
        return [_conversation(messages, characters, visual, sizes)]
    shared = len(json.dumps({key: value for key, value in document.items() if key != name}))
    return [_conversation(one, len(json.dumps(one)) + shared, visual, sizes) for one in messages]


def _conversation(messages: Any, characters: int, visual: VisualSpec | None, sizes: Sizes) -> PromptBound:
    return _bound(media_of(messages), characters, visual, sizes)


def _bound(media: Sequence[Media], characters: int, visual: VisualSpec | None, sizes: Sizes) -> PromptBound:
    kept = min(sizes.context, kept_at_most(media, visual, sizes))
    text = max(0, characters - sum(len(item.text) for item in media)) + TEMPLATE_TOKENS
    return PromptBound(kept, min(sizes.context, kept + text))


def _texts(document: Mapping[str, Any], sizes: Sizes) -> list[PromptBound]:
    """Prompts of `/v1/completions`: text or token ids, one or several, and embeddings of unknown length."""
    prompt, embeds = document.get("prompt"), document.get("prompt_embeds")
    prompts = prompt if isinstance(prompt, list) else [prompt]
    if prompts and all(isinstance(one, int) for one in prompts):
        prompts = [prompts]
    lengths = [sizes.context] * (len(embeds) if isinstance(embeds, list) else embeds is not None)
    for one in prompts:
        if isinstance(one, str):
            lengths.append(len(one.encode("utf-8", "surrogatepass")) + TEMPLATE_TOKENS)
        elif isinstance(one, list):
            lengths.append(len(one))
    return [PromptBound(0, min(sizes.context, length)) for length in lengths] or [PromptBound(0, sizes.context)]
