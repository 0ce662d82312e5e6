"""Rotary tables of the language model, with room for rows that a step composes.

vLLM's rotary embeddings look up one row of `cos_sin_cache` per token, or per token and axis. Every frequency belongs to
one axis, so a row whose frequencies come from the rows of several positions rotates a token by all of them: the token
is given the number of that row as its position on every axis. The rows of real positions stay as they were made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...vllm_compat.signatures import load

_ROWS = "vllm_prune_positions"
"""Attribute of a rotary embedding with room: rows of its table that are positions."""
_TABLES = "vllm_prune_tables"
"""Attribute of a rotary embedding with room: its shorter tables."""
_FORWARDS = ("forward", "forward_native", "forward_cuda", "forward_hip", "forward_xpu", "forward_cpu")
_SCALED_QUERIES = ("do_llama_4_scaling", "attn_temperature_tuning")
"""Attributes of attention layers of vLLM that read positions for more than rotary embedding, where they are true."""


def ropes_of(language: nn.Module) -> list[Any]:
    """The rotary embeddings of a language model, each once, whatever their class."""
    package = load("get_rope").__module__
    modules = [module for module in language.modules() if type(module).__module__.startswith(f"{package}.")]
    # How a pair is rotated, which each rotary embedding has inside.
    return [module for module in modules if not isinstance(module, load("ApplyRotaryEmb"))]


def obstacle(language: nn.Module, latent: bool) -> str | None:
    """Why a composed row would not rotate tokens of a language model as meant, None where it does.

    Args:
        language: vLLM's language model.
        latent: whether vLLM gives it latent attention (MLA).
    """
    ropes = ropes_of(language)
    if latent:
        return "it has latent attention (MLA)"
    if not ropes:
        return "it has no rotary embedding"
    if others := sorted({type(rope).__name__ for rope in ropes if not _looks_up_rows(rope)}):
        return f"its rotary embedding ({', '.join(others)}) does not look positions up in one table"
    if any(getattr(module, name, False) for module in language.modules() for name in _SCALED_QUERIES):
        return "its queries are scaled by their position"
    return None


def _looks_up_rows(rope: Any) -> bool:
    kind = next((k for k in (load("RotaryEmbedding"), load("MRotaryEmbedding")) if isinstance(rope, k)), None)
    if kind is None or any(getattr(type(rope), name, None) is not getattr(kind, name, None) for name in _FORWARDS):
        return False
    table = getattr(rope, "cos_sin_cache", None)
    # A second table, of another dtype, is what AITER reads.
    return isinstance(table, Tensor) and table.ndim == 2 and getattr(rope, "cos_sin_cache_bf16", None) is None


def positions_in(rope: Any) -> int:
    """Rows of a rotary embedding's table that are positions."""
    return int(getattr(rope, _ROWS, len(rope.cos_sin_cache)))


def make_room(rope: Any, rows: int) -> None:
    """Let a rotary embedding's table have at least `rows` rows. Layers and engines of a process may share it."""
    table, positions = rope.cos_sin_cache, positions_in(rope)
    setattr(rope, _ROWS, positions)
    if len(table) < rows:
        # Graphs that another engine has captured read the table that they have seen.
        setattr(rope, _TABLES, [*getattr(rope, _TABLES, []), table])
        rope.cos_sin_cache = torch.cat([table, table.new_zeros(rows - len(table), table.shape[1])])


def axes_of(rope: Any, one_row: bool) -> list[int]:
    """The axis of each frequency.

    Args:
        rope: a rotary embedding of vLLM.
        one_row: whether it is given one position per token.
    """
    frequencies, sections = rope.cos_sin_cache.shape[1] // 2, getattr(rope, "mrope_section", None)
    if one_row or not sections:
        return [0] * frequencies
    if rope.mrope_interleaved:
        axes = (i % len(sections) for i in range(frequencies))
        return [axis if i < len(sections) * sections[axis] else 0 for i, axis in enumerate(axes)]
    return [axis for axis, size in enumerate(sections) for _ in range(size)]


def parts_of(axes: Sequence[int], parts: int) -> list[int]:
    """The part of each frequency, when those of every axis are divided in their order into equal ones.

    Where that does not come out even the first parts have one more, and of an axis with fewer frequencies the last
    parts have none.
    """
    result = np.zeros(len(axes), dtype=np.int64)
    for axis in set(axes):
        places = np.flatnonzero(np.array(axes) == axis)
        for part, inside in enumerate(np.array_split(places, parts)):
            result[inside] = part
    return [int(part) for part in result]


def layouts_of(ropes: Sequence[Any], one_row: bool) -> Iterator[tuple[tuple[int, ...], list[Any]]]:
    """The rotary embeddings by the axes of their frequencies."""
    axes = [tuple(axes_of(rope, one_row)) for rope in ropes]
    for layout in dict.fromkeys(axes):
        yield layout, [rope for rope, one in zip(ropes, axes, strict=True) if one == layout]
