"""The pass through a tower that is cut: dense blocks in groups of frames, a choice, the rest on survivors.

The dense blocks see every cell, so what they hold in between would set the peak of memory whatever the budget. They
run in groups of whole frames, none of which is larger than what survives (or than `LEAST`); all that grows with
the unpruned size is one row per patch. On a CPU the survivors go in groups that its caches hold, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .survivors import Group, Rows, Survivors, frame_groups, in_groups, joined, part, runs

Choose = Callable[[Tensor], Tensor]
"""From one row for each cell of a batch, in raster order, to the kept cells, int64, ascending."""


def mean_state(cells: Tensor) -> Tensor:
    """Mean hidden state of each cell's patches: [C, unit, width] to float32 [C, width]."""
    return cells.float().mean(1)


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
        return mean_state(cells)

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


class DensePass:
    """What the dense blocks leave for the rest of a batch.

    Args:
        groups: the batch, in parts that go through the dense blocks together.
        metas: the tower's metadata of each group.

    Attributes:
        hidden: the last block's output.
        levels: outputs that `tower_end` needs, by block number.
        looked: of each group what is kept in mind of its cells.
    """

    def __init__(self, groups: Sequence[Group], metas: Sequence[dict[str, Any]]) -> None:
        total = groups[-1].last
        self.groups, self.metas = groups, metas
        self.hidden, self.levels = Rows(total), defaultdict[int, Rows](lambda: Rows(total))
        self.looked: list[Tensor] = []

    def put(self, group: Group, hidden: Tensor, levels: Mapping[int, Tensor]) -> None:
        """Outputs of a run of blocks for a group."""
        self.hidden.put(group, hidden)
        for number, level in levels.items():
            self.levels[number].put(group, level)


@dataclass(frozen=True)
class Staying:
    """Rows of the cells that stay in the tower, in the tower's order, as the blocks behind a cut take them.

    Attributes:
        cells: which they are.
        hidden: [patches, 1, width].
        meta: the tower's metadata for them.
        levels: outputs from before the cut, by block number.
        raster: the tower's place of each of the batch's cells; None where it takes them in raster order.
    """

    cells: Survivors
    hidden: Tensor
    meta: dict[str, Tensor]
    levels: dict[int, Tensor]
    raster: Tensor | None


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
        dense = self.run_dense(pixels, thw.tolist(), cut)
        after, kept = self.decide(dense, cut)
        return self._rest(after, cut.context(kept), kept, dense)

    def run_dense(self, pixels: Tensor, thw: Sequence[Sequence[int]], cut: Cut) -> DensePass:
        """The blocks in front of a cut, in groups of frames."""
        groups = frame_groups(thw, self._most(pixels.device, cut.count * self._unit))
        dense = DensePass(groups, [dict(self.visual.prepare_encoder_metadata(group.thw)) for group in groups])
        for group, meta in zip(groups, dense.metas, strict=True):
            rows, levels, looked = self.look_at(pixels[group.first : group.last], meta, cut.after, cut.look)
            dense.put(group, rows, levels)
            dense.looked.append(looked)
        return dense

    def look_at(
        self, pixels: Tensor, meta: dict[str, Any], after: int, look: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, dict[int, Tensor], Tensor]:
        """Rows behind the first `after` blocks, levels by block number, and what is kept in mind of the cells.

        Args:
            pixels: [patches, values], in raster order.
            meta: the tower's metadata.
            after: blocks to run.
            look: see `Cut.look`.
        """
        levels: dict[int, Tensor] = {}
        rows = self.tower_blocks(self.tower_start(pixels, meta), range(after), meta, levels)
        cells = rows.view(len(rows) // self._unit, self._unit, -1)
        return rows, levels, look(cells[meta["reverse_indices"]] if "reverse_indices" in meta else cells)

    def decide(self, dense: DensePass, cut: Cut) -> tuple[int, Tensor]:
        """The number of the first block behind the cut, and the kept cells of the batch, int64 [K], ascending."""
        looked, after = torch.cat(dense.looked), cut.after
        bias = cut.bias(looked)
        if bias is None:
            return after, cut.choose(looked)
        groups = zip(dense.groups, dense.metas, in_groups(bias, dense.groups, self._unit), strict=True)
        for group, meta, group_bias in groups:
            ordered = group_bias[meta["window_index"]] if "window_index" in meta else group_bias
            levels: dict[int, Tensor] = {}
            with self.biased(after, ordered.repeat_interleave(self._unit)):
                rows = self.tower_blocks(dense.hidden.of(group), range(after, after + 1), meta, levels)
            dense.put(group, rows, levels)
        return after + 1, cut.choose(looked)

    def staying(self, cells: Tensor, dense: DensePass) -> Staying:
        """What the blocks behind a cut take.

        Args:
            cells: int64, ascending, those that stay.
            dense: gives up its rows.
        """
        meta = joined(dense.metas, dense.groups, self._unit)
        raster = meta.get("reverse_indices")
        places, _ = in_tower_order(cells, raster)
        alive = Survivors.of(places, dense.groups[-1].last // self._unit, self._unit)
        levels = {number: alive.patches(level.take()) for number, level in dense.levels.items()}
        return Staying(alive, alive.patches(dense.hidden.take()), alive.metadata(meta), levels, raster)

    @property
    def _unit(self) -> int:
        return int(self.visual.spatial_merge_unit)

    def _most(self, device: torch.device, survivors: int) -> int:
        """Patches of a group of dense blocks."""
        if self.least_group is not None:
            return max(self.least_group, survivors)
        least = LEAST.get(device.type)
        return max(LEAST_ELSEWHERE, survivors) if least is None else least

    def biased(self, number: int, bias: Tensor) -> AbstractContextManager[None]:
        """Context in which block `number` attends with a bias per key, float32 [patches] in the tower's order."""
        raise NotImplementedError

    def _rest(self, after: int, stay: Tensor, kept: Tensor, dense: DensePass) -> Tensor:
        staying = self.staying(stay, dense)
        levels = staying.levels
        rows = self._survivors(staying.hidden, after, staying.meta, levels)
        places, order = in_tower_order(kept, staying.raster)
        if stay is not kept:
            # Context has done its work; only kept cells go to the language model.
            kept_rows = Survivors.of(staying.cells.before[places] // self._unit, len(stay), self._unit)
            rows, levels = (
                kept_rows.patches(rows),
                {number: kept_rows.patches(level) for number, level in levels.items()},
            )
        return in_raster_order(self.tower_end(rows, levels), order)

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


def in_tower_order(cells: Tensor, raster: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Ascending places in the tower's order, and which cell stands at each; None where that is raster order.

    Args:
        cells: int64, ascending in raster order.
        raster: the tower's place of each cell; None where it takes them in raster order.
    """
    return (cells, None) if raster is None else raster[cells].sort()


def in_raster_order(rows: Tensor, order: Tensor | None) -> Tensor:
    """Rows of cells as they lie in the picture; `order` is that of `in_tower_order`."""
    return rows if order is None else torch.empty_like(rows).index_copy_(0, order, rows)
