"""A place to cut that has CUDA graphs, and the items of a batch that are cut there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...grid import MODALITIES, Grid
from ..item_plan import ItemPlan, decode, field_name
from .cut import Cut
from .select import PrunePoint, build_cut


@dataclass(frozen=True)
class GraphedCut:
    """A place to cut that has graphs.

    Attributes:
        place: see `prune_point`.
    """

    place: PrunePoint

    @property
    def dense(self) -> str:
        """Path of the blocks in front of the choice."""
        return f"dense {self._name}"

    @property
    def survivors(self) -> str:
        """Path of the blocks behind it."""
        return f"survivors {self._name}"

    @property
    def after(self) -> int:
        """Blocks in front of what is looked at."""
        return self.place[0]

    @property
    def scored(self) -> bool:
        """Whether the scorer makes the choice."""
        return self.place[1]

    @property
    def first(self) -> int:
        """Number of the first block behind the cut; a scorer biases one more block in front of it."""
        return self.after + self.scored

    @property
    def _name(self) -> str:
        return f"{self.after} scored" if self.scored else str(self.after)


@dataclass(frozen=True)
class Choice:
    """What was chosen of a batch: cells of each item, and what brings their rows into raster order."""

    kept: Sequence[Tensor]
    order: Tensor | None


@dataclass(frozen=True)
class Batch:
    """Items of one modality.

    Attributes:
        kwargs: of an encoder call.
        modality: "image" or "video".
        thw: frames, height and width of each in patches.
        grids: the same in cells.
        plans: None for items without a budget.
    """

    kwargs: dict[str, Any]
    modality: str
    thw: list[list[int]]
    grids: list[Grid]
    plans: list[ItemPlan | None]

    @classmethod
    def of(cls, model: Any, kwargs: dict[str, Any]) -> Batch:
        """The batch in the keyword arguments of an encoder call."""
        modality = model.get_input_modality(kwargs)
        thw = [[int(n) for n in sizes] for sizes in kwargs[f"{modality}_grid_thw"]]
        return cls(kwargs, modality, thw, [model._grid(sizes) for sizes in thw], plans_of(kwargs, len(thw)))

    @property
    def pixels(self) -> Tensor:
        """[patches, values] of all items."""
        pixels: Tensor = self.kwargs["pixel_values" if self.modality == "image" else "pixel_values_videos"]
        return pixels

    def cut(self, model: Any, cut: GraphedCut) -> tuple[Cut, list[Tensor]]:
        """See `build_cut`."""
        plans = [plan for plan in self.plans if plan is not None]
        return build_cut(cut.place, plans, self.grids, model._scorer, model.visual.device)


def plans_of(kwargs: Mapping[str, Any], count: int) -> list[ItemPlan | None]:
    """Plans of a batch of one modality; vLLM may carry none for items without a budget."""
    rows = next((kwargs[name] for name in map(field_name, MODALITIES) if kwargs.get(name) is not None), None)
    return [None] * count if rows is None else [decode(row) for row in rows]
