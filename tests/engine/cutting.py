"""An oracle for cuts inside the tower: transformers' whole tower, in which cut cells are hidden as keys.

No row is dropped, packed or counted anew there, so it shares nothing with the way the cut is done in the engine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from vllm_prune.catalogue import VISUAL
from vllm_prune.visual.frontend.frame_split import frame_counts
from vllm_prune.visual.strategies.base import Context

from .oracle import Item, Oracle


class CutOracle(Oracle):
    """Answers as a request must be answered whose strategy chooses inside the tower."""

    def choose(
        self, item: Item, name: str, count: int, options: dict[str, Any] | None, earlier: Sequence[Item]
    ) -> Tensor:
        """Kept cells; the item's features and deepstack levels become those of the tower with the cut."""
        assert options is not None
        after, visual = options["after"], self.hf.model.visual
        thw = torch.tensor([[item.grid.frames, 2 * item.grid.rows, 2 * item.grid.cols]])
        hidden, order = inputs_of(visual, after, lambda: self.tower(item.patches, thw))
        cells = hidden.view(item.grid.tokens, 4, -1).mean(1)
        features = torch.empty_like(cells).index_copy(0, order, cells)
        per_frame = None
        if self.qwen3 and item.modality == "video":
            per_frame = frame_counts(count, item.grid, item.patches, VISUAL.strategy_class(name).frame_split)
        kept = VISUAL.create(name, options).select(features, item.grid, count, Context(), per_frame)
        alive = torch.isin(order, kept).repeat_interleave(4)
        with hidden_keys(visual, after, alive):
            item.features, item.deepstack = self.tower(item.patches, thw)
        return kept


@torch.no_grad()
def inputs_of(visual: Any, block: int, run: Callable[[], Any]) -> tuple[Tensor, Tensor]:
    """Hidden states [patches, width] that a block gets, and the raster id of each cell in the tower's order."""
    found: list[Tensor] = []
    orders: list[Tensor] = []
    handle = visual.blocks[block].register_forward_pre_hook(lambda _, args: found.append(args[0]))
    original = getattr(visual, "permute_input_for_window_attn", None)

    def permute(tensor: Tensor, window_index: Tensor, **kwargs: Any) -> Tensor:
        orders.append(window_index)
        return original(tensor, window_index, **kwargs)  # type: ignore[misc]

    try:
        if original is None:
            run()
        else:
            with patch.object(visual, "permute_input_for_window_attn", permute):
                run()
    finally:
        handle.remove()
    hidden = found[0].reshape(-1, found[0].shape[-1])
    return hidden, orders[0] if orders else torch.arange(len(hidden) // 4)


@contextmanager
def hidden_keys(visual: Any, after: int, alive: Tensor, bias: Tensor | None = None) -> Iterator[None]:
    """Blocks from number `after` on do not see the patches that are not alive; the one before them has a key bias.

    `alive` is bool [patches] and `bias` float [patches], both in the tower's order.
    """
    modeling = sys.modules[type(visual).__module__]
    eager, before = modeling.eager_attention_forward, visual.config._attn_implementation
    numbers = {block.attn: number for number, block in enumerate(visual.blocks)}
    seen: dict[int, int] = {}

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
        number, size = numbers.get(module, -1), key.shape[2]
        start = seen.get(number, 0)
        seen[number] = start + size
        if number == after - 1 and bias is not None:
            attention_mask = bias[start : start + size].expand(size, size)
        if number >= after:
            hidden = (~alive[start : start + size]).expand(size, size)
            # A hidden row still sees itself, or its softmax would be over nothing.
            hidden = hidden & ~torch.eye(size, dtype=torch.bool)
            attention_mask = torch.zeros(size, size).masked_fill(hidden, -torch.inf)
        return eager(module, query, key, value, attention_mask=attention_mask, **kwargs)

    visual.config._attn_implementation = "eager"
    try:
        with patch.object(modeling, "eager_attention_forward", attend):
            yield
    finally:
        visual.config._attn_implementation = before
    assert set(seen.values()) == {len(alive)}
