"""The pass through a tower that is cut: dense blocks in groups of frames, a choice, the rest on survivors.

The dense blocks see every cell, so what they hold in between would set the peak of memory whatever the budget. They
run in groups of whole frames, none of which is larger than what survives (or than `LEAST`); all that grows with
the unpruned size is one row per patch. On a CPU the survivors go in groups that its caches hold, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .survivors import Group, Rows, Survivors, frame_groups, in_groups, joined, part, runs

Choose = Callable[[Tensor], Tensor]
"""From one row for each cell of a batch, in raster order, to the kept cells, int64, ascending."""


class Cut:
    """What decides inside the tower. This one looks at the mean hidden state of each cell's patches.

    Attributes:
        after: blocks in front of what is looked at.
        count: cells that are kept of the batch, K.
    """

    def __init__(self, after: int, count: int, choose: Choose) -> None:
        self.after, self.count, self._choose = after, count, choose

    def look(self, cells: Tensor) -> Tensor:
        """What is kept in mind of some cells: [C, unit, width] to float32 [C, *]."""
        return cells.float().mean(1)

    def bias(self, looked: Tensor) -> Tensor | None:
        """Bias of each cell's keys in one more block that sees all cells, float32 [cells]; None for no such block."""
        return None

    def choose(self, looked: Tensor) -> Tensor:
        """Kept cells of the batch, int64 [K], ascending."""
        return self._choose(looked)

    def context(self, kept: Tensor) -> Tensor:
        """Cells that stay in the tower, int64, ascending; the kept ones are among them."""
        return kept


LEAST = {"cpu": 1024}
"""Patches below which smaller groups would only cost time, by kind of device; on a CPU larger ones do."""


LEAST_ELSEWHERE = 4096


@dataclass
class _Dense:
    """What the dense blocks leave for the rest: the last one's output, and levels by block number."""

    hidden: Rows
    levels: defaultdict[int, Rows]


class TowerCut:
    """Mixin of adapters: `encode_cut`, from the four methods that an adapter implements for its tower.

    Attributes:
        least_group: patches that a group may have whatever the budget; None for `LEAST`.
    """

    visual: Any
    least_group: int | None = None

    def tower_start(self, pixels: Tensor, meta: dict[str, Any]) -> Tensor:
        """Hidden states [patches, 1, width] in the tower's order, from [patches, values] in raster order."""
        raise NotImplementedError

    def tower_blocks(self, hidden: Tensor, numbers: range, meta: dict[str, Any], levels: dict[int, Tensor]) -> Tensor:
        """Run some blocks; outputs that `tower_end` needs beside the last one's go into `levels` by block number."""
        raise NotImplementedError

    def tower_end(self, hidden: Tensor, levels: dict[int, Tensor]) -> Tensor:
        """[K, output width] from the last block's output and the levels."""
        raise NotImplementedError

    def encode_cut(self, pixels: Tensor, thw: Tensor, cut: Cut) -> Tensor:
        """Run the tower with a cut.

        Args:
            pixels: [patches, values] of all items, one after the other.
            thw: int64 [items, 3], their grids in patches.
            cut: what is looked at, and what goes on.

        Returns:
            [K, output width], rows of the kept cells in raster order.
        """
        unit, total = int(self.visual.spatial_merge_unit), len(pixels)
        groups = frame_groups(thw.tolist(), self._most(pixels.device, cut.count * unit))
        metas = [dict(self.visual.prepare_encoder_metadata(group.thw)) for group in groups]
        state = _Dense(Rows(total), defaultdict(lambda: Rows(total)))
        looked = []
        for group, meta in zip(groups, metas, strict=True):
            rows = self.tower_start(pixels[group.first : group.last], meta)
            rows = self._dense(rows, range(cut.after), meta, group, state)
            looked.append(cut.look(_in_raster(rows.view(len(rows) // unit, unit, -1), meta)))
        decided, after = torch.cat(looked), cut.after
        if (bias := cut.bias(decided)) is not None:
            for group, meta, group_bias in zip(groups, metas, in_groups(bias, groups, unit), strict=True):
                ordered = group_bias[meta["window_index"]] if "window_index" in meta else group_bias
                with self.biased(after, ordered.repeat_interleave(unit)):
                    self._dense(state.hidden.of(group), range(after, after + 1), meta, group, state)
            after += 1
        return self._rest(after, cut, cut.choose(decided), joined(metas, groups, unit), state, total // unit)

    def _most(self, device: torch.device, survivors: int) -> int:
        """Patches of a group of dense blocks."""
        if self.least_group is not None:
            return max(self.least_group, survivors)
        least = LEAST.get(device.type)
        return max(LEAST_ELSEWHERE, survivors) if least is None else least

    def _dense(self, rows: Tensor, numbers: range, meta: dict[str, Any], group: Group, state: _Dense) -> Tensor:
        levels: dict[int, Tensor] = {}
        rows = self.tower_blocks(rows, numbers, meta, levels)
        state.hidden.put(group, rows)
        for number, level in levels.items():
            state.levels[number].put(group, level)
        return rows

    def biased(self, number: int, bias: Tensor) -> AbstractContextManager[None]:
        """Context in which block `number` attends with a bias per key, float32 [patches] in the tower's order."""
        raise NotImplementedError

    def _rest(self, after: int, cut: Cut, kept: Tensor, meta: dict[str, Tensor], state: _Dense, cells: int) -> Tensor:
        unit = int(self.visual.spatial_merge_unit)
        raster = meta.get("reverse_indices")
        stay = cut.context(kept)
        alive = Survivors.of(_places(stay, raster)[0], cells, unit)
        few = alive.metadata(meta)
        levels = {number: alive.patches(level.take()) for number, level in state.levels.items()}
        rows = self._survivors(alive.patches(state.hidden.take()), after, few, levels)
        places, order = _places(kept, raster)
        if stay is not kept:
            # Context has done its work; only kept cells go to the language model.
            kept_rows = Survivors.of(alive.before[places] // unit, len(stay), unit)
            rows, levels = (
                kept_rows.patches(rows),
                {number: kept_rows.patches(level) for number, level in levels.items()},
            )
        merged = self.tower_end(rows, levels)
        return merged if order is None else torch.empty_like(merged).index_copy_(0, order, merged)

    def _survivors(self, rows: Tensor, after: int, meta: dict[str, Tensor], levels: dict[int, Tensor]) -> Tensor:
        """The blocks behind the cut."""
        numbers = range(after, len(self.visual.blocks))
        most = LEAST.get(rows.device.type) if self.least_group is None else self.least_group
        if most is None or len(rows) <= most:
            return self.tower_blocks(rows, numbers, meta, levels)
        done, level_parts = [], defaultdict(list)
        for first, last in runs(meta["cu_seqlens"].tolist(), most):
            group_levels: dict[int, Tensor] = {}
            done.append(self.tower_blocks(rows[first:last], numbers, part(meta, first, last), group_levels))
            for number, level in group_levels.items():
                level_parts[number].append(level)
        levels |= {number: torch.cat(parts) for number, parts in level_parts.items()}
        return torch.cat(done)


def _in_raster(cells: Tensor, meta: dict[str, Any]) -> Tensor:
    return cells[meta["reverse_indices"]] if "reverse_indices" in meta else cells


def _places(cells: Tensor, raster: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Ascending places in the tower's order, and which cell stands at each; None where that is raster order."""
    return (cells, None) if raster is None else raster[cells].sort()
