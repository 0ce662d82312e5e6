"""The front end of generic adapters: what a placeholder looks like is asked of vLLM's own processor.

Its prompt updates give the unpruned placeholder of each item, with a mask of the tokens that take an embedding. The
budget shortens the embedded runs; all text in between stays, so that a row or a tile that keeps nothing still has its
separators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from vllm.multimodal.inputs import MultiModalKwargsItems
from vllm.multimodal.processing import PromptUpdateDetails

from ...budget.canonical import VisualSpec
from ...budget.errors import BudgetError
from ...grid import Grid
from ...shares import largest_remainder
from ..item_plan import plan_of
from ..models.abilities import missing
from ..models.segments import Segments, item_grid, runs_of, segments_of, thinned
from ..models.unpruned_prompt import counts_of
from .frame_split import FrameSplit, frame_counts
from .granted_item import Grants
from .processor import PrunedProcessor

if TYPE_CHECKING:
    from ..models.table import Family

SPREAD = 0.5
"""Standard deviation of pixels where the processor does not say it."""


class GenericProcessor(PrunedProcessor):
    """Mixin placed before any multimodal processor of vLLM.

    Attributes:
        family: the row of the table that the adapter is made from.
    """

    family: ClassVar[Family]
    exact_image_sizes: ClassVar[bool] = False
    info: Any

    def cell_side(self) -> int:
        """See `GridItems.cell_side`; only read where the processor gives grids of patches."""
        at: Any = self.info.get_hf_config()
        for name in self.family.cell_side.split("."):
            at = getattr(at, name, None)
        side = at[0] if isinstance(at, Sequence) else at
        return 1 if side is None else int(side)

    def pixel_spread(self) -> float:
        """See `GridItems.pixel_spread`."""
        processor = getattr(self.info.get_hf_processor(), "image_processor", None)
        deviations = getattr(processor, "image_std", None)
        return SPREAD if not deviations else float(sum(deviations) / len(deviations))

    def add_segments(self, mm_items: Any, kwargs: Mapping[str, object], data: Any) -> None:
        """See `GridItems.add_segments`: from the parent's prompt updates."""
        parent: Any = super(PrunedProcessor, self)
        items = MultiModalKwargsItems.from_hf_inputs(data, parent._get_mm_fields_config(data, kwargs))
        for update in parent._get_prompt_updates(mm_items, kwargs, items):
            if update.modality in self.sent_as and _segments_field(update.modality) not in data:
                details = [update.resolve(i).content for i in range(mm_items.get_count(update.modality, strict=False))]
                data[_segments_field(update.modality)] = [_segments(content) for content in details]

    def segments_of(self, modality: str, data: Any, index: int) -> Segments | None:
        """See `GridItems.segments_of`."""
        segments: Segments = data[_segments_field(modality)][index]
        return segments

    def grids_of(self, modality: str, data: Any) -> list[Grid]:
        """See `GridItems.grids_of`; none where no request has asked about the items."""
        sizes = data.get(self.family.patch_grids.get(modality, ""))
        return [
            self._grid(modality, segments, None if sizes is None else sizes[i])
            for i, segments in enumerate(data.get(_segments_field(modality), ()))
        ]

    def _grid(self, modality: str, segments: Segments, size: Tensor | None) -> Grid:
        rows = modality == "image" and self.family.image_rows
        runs = [sum(runs_of(segments)) - sum(self.marks)] if any(self.marks) else runs_of(segments)
        # Some processors give the size in a list of one.
        return item_grid(runs, None if size is None else size.flatten().tolist(), self.cell_side(), rows)

    def patches_of(self, modality: str, data: Any, index: int) -> Any:
        """See `GridItems.patches_of`; None also where the processor does not give them visual token by token."""
        return super().patches_of(modality, data, index) if "pixels" in self.family.signals else None

    def size_of(self, items: Any, modality: str, index: int, kwargs: Mapping[str, object]) -> int:
        """See `GridItems.size_of`: the item is processed for it, as families count in ways of their own."""
        alone = self.info.parse_mm_data({modality: [items[index]]}, validate=False)
        parent: Any = super(PrunedProcessor, self)
        data = parent._apply_hf_processor_main(mm_items=alone, hf_kwargs=kwargs)
        self.add_segments(alone, kwargs, data)
        return self.grids_of(modality, data)[0].tokens

    def position_span(self, modality: str, grid: Grid) -> int:
        """See `PrunedProcessor.position_span`."""
        if self.family.positions != "grid":
            return grid.tokens
        if self.family.extent == "frame":
            return grid.frames * max(grid.rows, grid.cols)
        return max(grid.frames, grid.rows, grid.cols)

    def _positions_left(self, grants: Grants, result: Any) -> int:
        if self.family.positions == "compact":
            return max(1, self.rotary_table_size() - len(result["prompt_token_ids"]))
        return super()._positions_left(grants, result)

    def _grants(self, inputs: Any, spec: VisualSpec) -> Grants:
        for part in (spec.image, spec.video):
            if part is not None and (finding := missing(self.family, part)) is not None:
                raise finding.error()
        grants = super()._grants(inputs, spec)
        for grant in chain.from_iterable(grants.values()):
            if grant.budget and grant.modality not in self.family.modalities:
                raise BudgetError(
                    f"{self.family.name} takes no budget for {grant.modality}s; set pruning.visual.{grant.modality} to "
                    "null",
                    f"pruning.visual.{grant.modality}",
                )
        return grants

    def _keep_grids(self, result: Any) -> None:
        for modality in self.sent_as:
            placed_items = result["mm_placeholders"].get(modality, ())
            items, bases = result["mm_kwargs"].get(modality, ()), result["mm_hashes"].get(modality, ())
            for base, item, placed in zip(bases, items, placed_items, strict=False):
                # Items that a cache has answered come without data.
                if item is not None:
                    element = item.get(self.family.patch_grids.get(modality, ""))
                    segments = segments_of(placed.is_embed, placed.length)
                    size = None if element is None else element.data
                    self._item_cache.keep_grid(base, self._grid(modality, segments, size))

    def counts_of(
        self, modality: str, count: int, grid: Grid, segments: Segments | None, patches: Any, split: FrameSplit
    ) -> tuple[int, ...] | None:
        """See `PrunedProcessor.counts_of`: one count per embedded run, where text stands between runs."""
        assert segments is not None
        runs = runs_of(segments)
        if len(runs) == 1:
            return None
        if modality == "video" and len(runs) == grid.frames:
            return frame_counts(count, grid, patches, split)
        return tuple(largest_remainder(count, runs, runs, 1 if count >= len(runs) else 0))

    def _replacement(self, modality: str, unpruned_replacement: Any, out_mm_kwargs: Any) -> Any:
        def replacement(index: int) -> Any:
            content = unpruned_replacement(index) if callable(unpruned_replacement) else unpruned_replacement
            plan = plan_of(out_mm_kwargs[modality][index], modality)
            if plan is None:
                return content
            details = content if isinstance(content, PromptUpdateDetails) else PromptUpdateDetails.from_seq(content)
            tokens, is_embed = thinned(details.full, _segments(details), counts_of(plan))
            return replace(details, full=tokens, is_embed=is_embed)

        return replacement


def _segments_field(modality: str) -> str:
    return f"{modality}_segments"


def _segments(details: PromptUpdateDetails) -> Segments:
    mask = None if details.is_embed is None else details.is_embed(details.full)
    return segments_of(mask, len(details.full))
