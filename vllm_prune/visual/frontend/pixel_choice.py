"""Choices from pixels, which the front end makes before the vision tower runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.multimodal.processing.inputs import ProcessorInputs

from ...budget.allocate import ItemBudget
from ...budget.canonical import KEY
from ...catalogue import VISUAL
from ...grid import Grid
from ..item_plan import ItemPlan
from ..strategies.base import Cells, PixelStrategy
from .family_items import GridItems
from .granted_item import Grant
from .item_cache import ItemCache
from .media_uuids import MissingMediaError


class PixelProcessor(GridItems):
    """Mixin placed before a vLLM multimodal processor; see the module."""

    _item_cache: ItemCache
    _merge: int
    _spread: float

    def _process_alone(self, inputs: ProcessorInputs, modality: str, index: int) -> Any:
        """Processor output of one item of the request, for an item that the cache answered."""
        info: Any = self.info  # type: ignore[attr-defined]
        item = inputs.mm_data_items[modality][index]
        if item is None:
            raise MissingMediaError(modality, index, "its pixels are needed to compare another item with them")
        alone = info.parse_mm_data({modality: [item]}, validate=False)
        data = super()._apply_hf_processor_main(mm_items=alone, hf_kwargs=without_budget(inputs.hf_processor_mm_kwargs))  # type: ignore[misc]
        return self.patches_of(modality, data, 0)

    def _keep_cells(self, base: str, patches: Any) -> Cells:
        return self._item_cache.keep_cells(base, patches, self._merge**2, self._spread)

    def needed_cells(self, modality: str, data: Any, index: int, grid: Grid, grant: Grant) -> tuple[int, ...]:
        """Cells that a strategy keeps of an item in a processor's output when the count is left to it.

        Raises:
            ValueError: the item came as embeddings.
        """
        assert grant.budget is not None
        strategy, patches = VISUAL.create(grant.budget.strategy), self.patches_of(modality, data, index)
        assert isinstance(strategy, PixelStrategy)
        if patches is None:
            raise ValueError(f"strategy {strategy.name!r} looks at pixels, but this item came as embeddings")
        return tuple(strategy.needed_cells(self._keep_cells(grant.base, patches), grid).tolist())

    def _from_pixels(
        self,
        budget: ItemBudget,
        grant: Grant,
        grid: Grid,
        count: int,
        patches: Any,
        per_frame: Sequence[int] | None,
    ) -> tuple[int, ...] | None:
        strategy = VISUAL.create(budget.strategy, ItemPlan(budget.strategy, budget.options, count, 0).option_values)
        if not isinstance(strategy, PixelStrategy):
            return None
        if patches is None:
            raise ValueError(f"strategy {budget.strategy!r} looks at pixels, but this item came as embeddings")
        cells = self._keep_cells(grant.base, patches)
        earlier = [self._earlier_cells(grant, i) for i in range(len(grant.earlier))]
        return tuple(strategy.select_cells(cells, grid, count, earlier, per_frame).tolist())

    def _earlier_cells(self, grant: Grant, index: int) -> Cells:
        assert grant.patches_of is not None
        base = grant.earlier[index]
        return self._item_cache.cells(base) or self._keep_cells(base, grant.patches_of(index))


def without_budget(kwargs: Mapping[str, object]) -> dict[str, object]:
    """Processor arguments without ours."""
    return {key: value for key, value in kwargs.items() if key != KEY}
