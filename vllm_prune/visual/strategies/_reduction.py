"""What a strategy leaves of an item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Reduction:
    """What is left of an item.

    Attributes:
        kept: int64 [K], ascending and unique on return from `Strategy.reduce`; they keep their positions.
        merge: from rows of all cells, [M, E] of any float dtype, to those of the kept ones with what was merged into
            them, float32 [K, E] in the order of `kept`; None where dropped cells are dropped. E need not be the width
            of the features that were looked at.
        members: from P to the P cells that weigh most in each kept one, heaviest first, int64 [K, P]; in turn again
            where fewer are merged into it. None where dropped cells are dropped.
    """

    kept: Tensor
    merge: Callable[[Tensor], Tensor] | None = None
    members: Callable[[int], Tensor] | None = None

    def rows(self, rows: Tensor) -> Tensor:
        """What takes the place of an item's rows: [K, E] from [M, E], in their dtype."""
        return rows[self.kept] if self.merge is None else self.merge(rows).to(rows.dtype)

    def members_of(self, count: int) -> Tensor:
        """`count` members of each kept cell, int64 [K, count]; the cell itself where nothing is merged into it."""
        return alone(self.kept, count) if self.members is None else self.members(count)


def alone(cells: Tensor, count: int) -> Tensor:
    """Cells that are their only members, int64 [K, count] from [K]."""
    return cells[:, None].expand(-1, count)
