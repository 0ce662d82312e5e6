"""Visual pruning in the API process: budgets per item, placeholder counts and cache keys.

A mixin before a vLLM multimodal processor. The request's canonical budget arrives among the processor
kwargs; `apply` turns it into one grant per item, which decides the item's placeholder count and is part
of its hash. Without a budget the parent runs unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from torch import Tensor
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptInsertion
from vllm.multimodal.processing.inputs import ProcessorInputs

from ...budget.allocate import ItemBudget, allocate, plan
from ...budget.canonical import KEY, VisualSpec
from ...budget.errors import BudgetError
from ...budget.fields import is_auto
from ...catalogue import VISUAL
from ...grid import Grid, bitmap
from ...signals import VisualSignal
from ..item_plan import ItemPlan, decode, field_name, unpruned, with_cut
from ..scorers.tower_shape import tower_shape
from ..strategies.base import PixelStrategy
from .granted_item import Grant, Grants
from .item_cache import ItemCache
from .media_uuids import MissingMediaError
from .modalities import places_of, remembered
from .pixel_choice import PixelProcessor, without_budget
from .resizing import ResizingProcessor
from .user_text import Turns

REPORT = "vllm_prune_report"
"""Key under which `apply` leaves one report per item; the wrappers in `vllm_compat` take it off again."""

MAX_OUTPUT = "vllm_prune_max_output"
"""Key under which `apply` leaves the most output tokens that the model still has positions for."""


class PrunedProcessor(ResizingProcessor, PixelProcessor):
    """Mixin placed before a vLLM multimodal processor of the Qwen-VL kind."""

    vllm_prune_adapter: ClassVar[bool] = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._item_cache = ItemCache()
        self._merge = self.cell_side()
        tower = tower_shape(self.info.get_hf_config())  # type: ignore[attr-defined]
        self._depth = None if tower is None else tower.depth
        self._spread = self.pixel_spread()
        self._turns: Turns | None = None

    def apply(self, inputs: ProcessorInputs, timing_ctx: Any) -> Any:
        """Process a prompt with its media; see the parent."""
        wire = inputs.hf_processor_mm_kwargs.get(KEY)
        grants: Grants = {}
        if wire is not None:
            inputs = replace(inputs, hf_processor_mm_kwargs=without_budget(inputs.hf_processor_mm_kwargs))
            grants = self._grants(inputs, with_cut(VisualSpec.from_wire(wire), self._depth))
            inputs = replace(inputs, hf_processor_mm_kwargs={**inputs.hf_processor_mm_kwargs, KEY: grants})
        result = super().apply(inputs, timing_ctx)  # type: ignore[misc]
        if not grants:
            self._keep_grids(result)
        result[REPORT] = self._report(inputs, grants, result)
        if any(grant.budget for items in grants.values() for grant in items):
            result[MAX_OUTPUT] = self._positions_left(grants, result)
        return result

    def rotary_table_size(self) -> int:
        """Number of positions in the model's rotary table."""
        return int(self.info.get_hf_config().get_text_config().max_position_embeddings)  # type: ignore[attr-defined]

    def position_span(self, modality: str, grid: Grid) -> int:
        """Positions by which an unpruned item moves the text after it."""
        raise NotImplementedError

    def _positions_left(self, grants: Grants, result: Any) -> int:
        """Positions left after a pruned prompt, which is shorter in tokens and not in positions."""
        following = len(result["prompt_token_ids"])
        for modality, items in grants.items():
            for grant, placed in zip(items, result["mm_placeholders"][modality], strict=True):
                if grid := self.smaller(grant) or self._item_cache.grid(grant.base):
                    following += self.position_span(modality, grid) - self.tokens_of(modality, placed)
        left = self.rotary_table_size() - following
        if left < 1:
            raise BudgetError(
                f"the media span {following} positions and the model has {self.rotary_table_size()}; send fewer or "
                "smaller frames: pruning drops tokens, not positions",
                "pruning.visual",
            )
        return left

    def _grants(self, inputs: ProcessorInputs, spec: VisualSpec) -> Grants:
        hashes = super()._get_mm_hashes(inputs)  # type: ignore[misc]
        places = places_of(inputs, self.sent_as, hashes, self._item_cache)
        sizes = {m: [self._size_in(inputs, name, i, hashes, spec) for name, i in at] for m, at in places.items()}
        granted: dict[str, dict[int, Grant]] = {}
        for modality, budgets in allocate(spec, sizes).items():
            text = self._text(inputs) if any(budget and "text" in _wanted(budget) for budget in budgets) else None
            for (name, i), budget in zip(places[modality], budgets, strict=True):
                earlier = tuple(hashes[name][:i]) if budget and _compares(budget) else ()
                source = partial(self._process_alone, inputs, name)
                grant = Grant(budget, hashes[name][i], earlier, source, text, modality=modality)
                granted.setdefault(name, {})[i] = grant
        grants = {name: [grant for _, grant in sorted(items.items())] for name, items in granted.items()}
        for name, items in grants.items():
            self.check_resizable(inputs.mm_data_items[name], name, items, inputs.hf_processor_mm_kwargs)
        return grants

    def _text(self, inputs: ProcessorInputs) -> tuple[int, ...]:
        """Token ids of the last user message's text. Raises `BudgetError` where it has none."""
        if self._turns is None:
            info: Any = self.info  # type: ignore[attr-defined]
            config = info.get_hf_config()
            self._turns = Turns.of(info.get_tokenizer(), {config.image_token_id, config.video_token_id})
        if text := self._turns.last_user_text(inputs.prompt):
            return text
        raise BudgetError(
            "the strategy reads the last user message, which has no text; name another one", "pruning.visual.strategy"
        )

    def _size_in(
        self, inputs: ProcessorInputs, modality: str, index: int, hashes: Mapping[str, Sequence[str]], spec: VisualSpec
    ) -> int:
        """Tokens of an item before pruning; only looked up where items share a number of tokens."""
        items = inputs.mm_data_items[modality]
        if not spec.counts:
            return 1
        grid = self._item_cache.grid(hashes[modality][index])
        if grid is None and items.get(index) is None:
            raise MissingMediaError(modality, index, "its size, which max_tokens is shared by, is not known here")
        return grid.tokens if grid else self.size_of(items, modality, index, inputs.hf_processor_mm_kwargs)

    def _get_mm_hashes(self, inputs: ProcessorInputs) -> Any:
        grants = inputs.hf_processor_mm_kwargs.get(KEY)
        if not grants:
            return super()._get_mm_hashes(inputs)  # type: ignore[misc]
        return {modality: [grant.key for grant in items] for modality, items in grants.items()}

    def _get_cache_missing_processor_kwargs(self, inputs: ProcessorInputs, mm_is_cached: Any) -> Mapping[str, object]:
        grants = inputs.hf_processor_mm_kwargs.get(KEY)
        bare = replace(inputs, hf_processor_mm_kwargs=without_budget(inputs.hf_processor_mm_kwargs))
        kwargs = super()._get_cache_missing_processor_kwargs(bare, mm_is_cached)  # type: ignore[misc]
        if not grants:
            return kwargs
        missing = {
            m: [grant for grant, hit in zip(items, mm_is_cached[m], strict=True) if not hit]
            for m, items in grants.items()
        }
        return {**kwargs, KEY: missing}

    def _keep_grids(self, result: Any) -> None:
        """Remember the grids of items without a budget; a request that is told what was kept needs them later."""
        for modality in self.sent_as:
            items = result["mm_kwargs"].get(modality, ())
            for base, item in zip(result["mm_hashes"].get(modality, ()), items, strict=False):
                # Items that a cache has answered come without data.
                if item is not None:
                    data = {name: e.data[None] for name, e in item.items() if isinstance(e.data, Tensor)}
                    for grid in self.grids_of(modality, data):
                        self._item_cache.keep_grid(base, grid)

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        grants: Any = hf_kwargs.get(KEY) or {}
        data = self.processed(mm_items, without_budget(hf_kwargs), grants)
        if grants:
            self.add_segments(mm_items, without_budget(hf_kwargs), data)
        for modality in self.sent_as:
            grids = self.grids_of(modality, data)
            if not grids:
                continue
            item_grants = grants.get(modality) or [None] * len(grids)
            if any(grant and grant.earlier for grant in item_grants):
                for i, grant in enumerate(item_grants):
                    self._keep_cells(grant.base, self.patches_of(modality, data, i))
            data[field_name(modality)] = [
                self._plan_field(modality, data, i, grids[i], grant) for i, grant in enumerate(item_grants)
            ]
        return data

    def _plan_field(self, modality: str, data: Any, index: int, grid: Grid, grant: Grant | None) -> Any:
        if grant is None or self.smaller(grant) is not None:
            return unpruned()
        self._item_cache.keep_grid(grant.base, grid)
        if grant.budget is None:
            return unpruned()
        budget = grant.budget
        needed = self.needed_cells(modality, data, index, grid, grant) if is_auto(budget.keep) else None
        count = plan(grid, budget) if needed is None else len(needed)
        if count == grid.tokens:
            return unpruned()
        patches = self.patches_of(modality, data, index)
        if patches is None and _wanted(budget) & {"projector", "scorer", "tower_attention"}:
            raise ValueError(f"strategy {budget.strategy!r} looks into the tower, but this item came as embeddings")
        segments = self.segments_of(modality, data, index)
        split = VISUAL.strategy_class(budget.strategy).frame_split
        per_frame = self.counts_of(grant.modality, count, grid, segments, patches, split)
        if needed is not None and per_frame is not None:
            per_frame = tuple(sum(cell // grid.per_frame == t for cell in needed) for t in range(grid.frames))
        indices = needed or self._from_pixels(budget, grant, grid, count, patches, per_frame)
        if indices is not None:
            self._item_cache.keep_kept(grant.key, bitmap(indices, grid.tokens))
        plan_of_item = ItemPlan(
            budget.strategy, budget.options, count, grant.seed, per_frame, indices, grant.kept_key, segments
        )
        shape = None if segments is None else (grid.frames, grid.rows, grid.cols)
        content = f"{modality}:{grant.base}"
        return replace(plan_of_item, grid=shape, marks=self.marks, text=grant.text, content=content).encode()

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        parent = super()._get_mm_fields_config(hf_inputs, without_budget(hf_processor_mm_kwargs))  # type: ignore[misc]
        plans = {field_name(m): MultiModalFieldConfig.batched(m, keep_on_cpu=True) for m in self.sent_as}
        return {**parent, **plans}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        updates = super()._get_prompt_updates(  # type: ignore[misc]
            mm_items, without_budget(hf_processor_mm_kwargs), out_mm_kwargs
        )
        fields = ["insertion" if isinstance(update, PromptInsertion) else "replacement" for update in updates]
        return [
            replace(u, **{name: self._replacement(u.modality, getattr(u, name), out_mm_kwargs)})
            for u, name in zip(updates, fields, strict=True)
        ]

    def _replacement(self, modality: str, unpruned_replacement: Any, out_mm_kwargs: Any) -> Any:
        def replacement(index: int) -> Any:
            item = out_mm_kwargs[modality][index]
            element = item.get(field_name(modality))
            item_plan = decode(element.data) if element is not None else None
            return (
                unpruned_replacement(index) if item_plan is None else self.pruned_placeholder(modality, item, item_plan)
            )

        return replacement

    def pruned_placeholder(self, modality: str, item: Any, plan: ItemPlan) -> Any:
        """Prompt tokens that stand for a pruned item; `item` is vLLM's keyword item."""
        config = self.info.get_hf_config()  # type: ignore[attr-defined]
        token = config.image_token_id if modality == "image" else config.video_token_id
        return [token] * plan.count

    def _report(self, inputs: ProcessorInputs, grants: Grants, result: Any) -> list[dict[str, Any]]:
        """One entry per item, in prompt order: what `usage.pruning` says of it, and where its kept tokens are known."""
        placed_items = [
            (placed, modality, i)
            for modality, ranges in result["mm_placeholders"].items()
            for i, placed in enumerate(ranges)
        ]
        report = []
        for placed, modality, i in sorted(placed_items, key=lambda item: item[0].offset):
            kept = self.tokens_of(modality, placed)
            grant = grants[modality][i] if modality in grants else self._no_grant(inputs, modality, i, result)
            budget, grid = grant.budget, self._item_cache.grid(grant.base)
            entry = {"modality": grant.modality, "strategy": "none", "input_tokens": kept, "kept_tokens": kept}
            if budget is not None:
                entry["strategy"] = budget.strategy
                entry["input_tokens"] = grid.tokens if grid else self._input_tokens(inputs, modality, i)
            entry |= {"capped": budget is not None and budget.capped, "kept_key": grant.kept_key}
            entry |= {"grid": self.smaller(grant) or grid, "resized": self.smaller(grant) is not None}
            report.append({**entry, "kept": self._item_cache.kept(grant.key)})
        return report

    def _no_grant(self, inputs: ProcessorInputs, modality: str, index: int, result: Any) -> Grant:
        base, items = result["mm_hashes"][modality][index], inputs.mm_data_items
        known = modality in self.sent_as and remembered(modality, items[modality], index, base, self._item_cache)
        return Grant(None, base, modality=known or modality)

    def _input_tokens(self, inputs: ProcessorInputs, modality: str, index: int) -> int:
        return self.size_of(
            inputs.mm_data_items[modality], modality, index, without_budget(inputs.hf_processor_mm_kwargs)
        )


def _wanted(budget: ItemBudget) -> frozenset[VisualSignal]:
    return VISUAL.create(budget.strategy, json.loads(budget.options)).wanted()


def _compares(budget: ItemBudget) -> bool:
    strategy = VISUAL.strategy_class(budget.strategy)
    return issubclass(strategy, PixelStrategy) and strategy.across_items
