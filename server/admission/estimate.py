"""What a request will take of the server: an upper bound from its JSON, and the true figure once it is prepared."""

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
from vllm_prune.grid import Grid, Modality
from vllm_prune.vllm_compat.renderer import OUTPUT_LIMITS

from .ledger import Amount

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
# Chat templates add a system prompt of their own; their marks are shorter than the JSON around a message.
TEMPLATE_TOKENS = 256


@dataclass(frozen=True)
class Sizes:
    """What is known of the served model.

    Attributes:
        context: most tokens of a prompt with its output.
        largest: visual tokens of the largest item of a modality.
        image: visual tokens of an image, from its width and height; None where the model has no adapter.
    """

    context: int = 1 << 20
    largest: Mapping[str, int] = field(default_factory=dict)
    image: Callable[[int, int], int] | None = None


@dataclass(frozen=True)
class Media:
    """One media item of a request: its kind, and its data or address as far as it is text."""

    kind: str
    text: str


def media_of(body: Any) -> list[Media]:
    """The media items of a request's JSON body, in order."""
    return list(_walk(body.get("messages") or body.get("input") if isinstance(body, Mapping) else None))


def _walk(node: Any, depth: int = 0) -> Iterator[Media]:
    if depth > DEEPEST:
        return
    if isinstance(node, list):
        for one in node:
            yield from _walk(one, depth + 1)
    elif isinstance(node, dict):
        key = next((key for key in MEDIA_KEYS if node.get(key) is not None), None)
        if key is not None:
            given = node[key]
            given = next((given[k] for k in ("url", "data") if k in given), "") if isinstance(given, dict) else given
            yield Media(MEDIA_KEYS[key], given if isinstance(given, str) else "")
        elif node.get("type") == "image" and isinstance(node.get("source"), dict):
            yield Media("image", "")
        else:
            for name in ("content", "output"):
                yield from _walk(node.get(name), depth + 1)


def upper_bound(request: Any, media: Sequence[Media], characters: int, visual: VisualSpec | None, kv: KvSpec | None,
                sizes: Sizes) -> Amount:  # fmt: skip
    """Most that a request can take, before any of its media has been fetched or decoded.

    Args:
        request: vLLM's request model.
        media: its media items.
        characters: length of its body.
        visual, kv: its budgets.
        sizes: of the served model.
    """
    tokens: dict[Modality, list[int]] = {"image": [], "video": []}
    for item in media:
        if item.kind == "image":
            tokens["image"].append(_image_tokens(item, sizes))
        elif item.kind == "video":
            tokens["video"].append(sizes.largest.get("video", sizes.context))
    kept = min(sizes.context, _kept(tokens, visual or VisualSpec()))
    text = max(0, characters - sum(len(item.text) for item in media)) + TEMPLATE_TOKENS
    prompt = min(sizes.context, kept + text)
    return Amount(1, kept, rows_held(request, [prompt], kv, sizes.context))


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


def rows_held(request: Any, prompts: Sequence[int], kv: KvSpec | None, context: int) -> int:
    """Rows of KV cache that a request holds while it decodes.

    Args:
        request: vLLM's request model.
        prompts: tokens of each prompt, kept visual tokens included.
        kv: its KV budget.
        context: most tokens of a prompt with its output.
    """
    choices: int = max(1, getattr(request, "n", None) or 1)
    given = (getattr(request, name, None) for name in OUTPUT_LIMITS)
    asked: list[int] = [limit for limit in given if isinstance(limit, int)]
    rows = 0
    for prompt in prompts:
        output = max(0, min([*asked, context - prompt]))
        if kv is None:
            rows += prompt + choices * output
        else:
            rows += choices * min(prompt + output, kv.count(prompt) + min(kv.buffer, output))
    return rows
