"""Sizes of parts of a request: media in its JSON, and rows of KV cache."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from vllm_prune.budget.allocate import allocate, plan
from vllm_prune.budget.canonical import VisualSpec
from vllm_prune.budget.errors import BudgetError
from vllm_prune.budget.kv import KvSpec
from vllm_prune.catalogue import KV
from vllm_prune.grid import Grid, Modality

# Keys of a content part that holds media, in every dialect that vLLM takes.
MEDIA_KEYS: Mapping[str, str] = {
    "image_url": "image",
    "image_pil": "image",
    "image_embeds": "image",
    "video_url": "video",
    "video_embeds": "video",
    "audio_url": "audio",
    "input_audio": "audio",
    "audio_embeds": "audio",
}
# Messages, message, content, part, and once more for what a tool returned.
DEEPEST = 8
# Base64 characters that hold the header of nearly every picture.
HEADER_CHARACTERS = 64 << 10


@dataclass(frozen=True)
class Sizes:
    """What is known of the served model.

    Attributes:
        context: most tokens of a prompt with its output.
        largest: visual tokens of the largest item of a modality.
        image: visual tokens of an image, from its width and height; None where the model has no adapter.
        grouped: whether the cache has several groups of layers.
    """

    context: int = 1 << 20
    largest: Mapping[str, int] = field(default_factory=dict)
    image: Callable[[int, int], int] | None = None
    grouped: bool = False


@dataclass(frozen=True)
class Media:
    """One media item of a request: its kind, and its data or address as far as it is text."""

    kind: str
    text: str


def media_of(messages: Any) -> list[Media]:
    """The media items of messages, input items or content parts, in order."""
    return list(_walk(messages))


def _walk(node: Any, depth: int = 0) -> Iterator[Media]:
    if depth > DEEPEST:
        return
    if isinstance(node, list):
        for one in node:
            yield from _walk(one, depth + 1)
    elif isinstance(node, dict):
        # All of them, as what counts in a node that looks like several things is for vLLM to say.
        keys = [key for key in MEDIA_KEYS if node.get(key) is not None]
        for key in keys:
            value = node[key]
            value = next((value[k] for k in ("url", "data") if k in value), "") if isinstance(value, dict) else value
            yield Media(MEDIA_KEYS[key], value if isinstance(value, str) else "")
        kind = node.get("type")
        if kind == "image" and isinstance(source := node.get("source"), dict):
            yield Media("image", _anthropic_text(source))
        elif not keys and isinstance(kind, str) and kind in MEDIA_KEYS and isinstance(node.get("url"), str):
            yield Media(MEDIA_KEYS[kind], node["url"])
        for name in ("content", "output"):
            yield from _walk(node.get(name), depth + 1)


def _anthropic_text(source: Mapping[str, Any]) -> str:
    data, url = source.get("data"), source.get("url")
    return f"data:image/;base64,{data}" if isinstance(data, str) else url if isinstance(url, str) else ""


def kept_at_most(media: Sequence[Media], visual: VisualSpec | None, sizes: Sizes) -> int:
    """Most visual tokens that are kept of media, which share the budget."""
    tokens: dict[Modality, list[int]] = {"image": [], "video": []}
    for item in media:
        if item.kind == "image":
            tokens["image"].append(_image_tokens(item, sizes))
        elif item.kind == "video":
            tokens["video"].append(sizes.largest.get("video", sizes.context))
    return _kept(tokens, visual or VisualSpec())


def _kept(tokens: Mapping[Modality, Sequence[int]], visual: VisualSpec) -> int:
    try:
        grants = allocate(visual, tokens)
    except BudgetError:
        # The processor will say so, with the true sizes in the message.
        return sum(sum(items) for items in tokens.values())
    pairs = [pair for modality in tokens for pair in zip(tokens[modality], grants[modality], strict=True)]
    return sum(size if grant is None else plan(Grid(1, 1, size), grant) for size, grant in pairs)


def _image_tokens(item: Media, sizes: Sizes) -> int:
    largest = sizes.largest.get("image", sizes.context)
    head, comma, data = item.text[: HEADER_CHARACTERS + 64].partition(",")
    if sizes.image is None or not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        return largest
    try:
        with Image.open(io.BytesIO(base64.b64decode(data[: len(data) // 4 * 4]))) as image:
            return min(largest, sizes.image(*image.size))
    except (OSError, ValueError, SyntaxError, binascii.Error, Image.DecompressionBombError):
        # Not for us to judge; its decoder will.
        return largest


def rows_held(
    choices: int, output: int | None, prompts: Sequence[int], kv: KvSpec | None, context: int, grouped: bool = False
) -> int:
    """Rows of KV cache that a request holds while it decodes.

    Args:
        choices: answers per prompt.
        output: most output tokens of an answer; None where only the context bounds them.
        prompts: tokens of each prompt, kept visual tokens included.
        kv: its KV budget.
        context: most tokens of a prompt with its output.
        grouped: whether the cache has several groups of layers.
    """
    rows = 0
    for prompt in prompts:
        left = max(0, context - prompt if output is None else min(output, context - prompt))
        if kv is None:
            rows += prompt + choices * left
        elif KV.strategy_class(kv.strategy).once:
            # Over groups of layers what it keeps of a prompt follows from its text. Decoded rows stay.
            rows += choices * ((prompt if grouped else min(prompt, kv.count(prompt))) + left)
        else:
            rows += choices * min(prompt + left, kv.count(prompt) + min(kv.buffer, left))
    return rows
