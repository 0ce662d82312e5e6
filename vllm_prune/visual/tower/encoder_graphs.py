"""CUDA graphs of a tower that is cut: of the blocks in front of the choice, and of those behind it.

vLLM's manager of encoder graphs captures, packs and replays by paths. Items without a cut keep vLLM's path, "default".
A place to cut has two more: its dense path ends with the tensors that a choice looks at, its survivors' path begins
with the chosen rows. In between the choice runs as it does without graphs. Both are captured for vLLM's numbers of
visual tokens: of all that a batch has, and of those that stay. What is larger runs without a graph, part by part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from vllm.v1.worker.encoder_cudagraph_defs import (
    EncoderCudaGraphCaptureInputs,
    EncoderCudaGraphConfig,
    EncoderCudaGraphPathConfig,
    EncoderCudaGraphReplayBuffers,
    EncoderItemSpec,
)

from ...grid import MODALITIES
from ..item_plan import CUT_AFTER, ItemPlan, field_name
from .cut import DensePass, TowerCut, in_raster_order, in_tower_order, mean_state
from .graphed_cut import Batch, Choice, GraphedCut
from .select import Left, prune_point
from .survivors import Group, pack_offsets

DEFAULT = "default"
NO_GRAPH = 1 << 40
"""Visual tokens of an item that no graph holds: vLLM then runs it alone and without one."""
PASS = "vllm_prune_dense_pass"
"""Where a dense path leaves what its survivors' path begins with, among the keyword arguments of a batch."""
HIDDEN, PACKED = "hidden", "packed "


class EncoderGraphs(TowerCut):
    """Mixin of adapters whose vLLM model supports encoder graphs.

    The names with an underscore and without a value are those of `PrunedModel`.

    Attributes:
        takes_cuts: whether the running server cuts inside the tower at all.
    """

    _scorer: Any
    _grid: Any
    _encode: Any
    _prune: Any
    _place: Any
    takes_cuts: bool
    _paths: Mapping[str, GraphedCut] = MappingProxyType({})
    _kept_rows: dict[str, Tensor]
    _sequences: Mapping[str, int] = MappingProxyType({})

    def level_blocks(self) -> Sequence[int]:
        """Numbers of the blocks whose outputs `tower_end` needs beside the last one's."""
        return ()

    def graphed_cuts(self) -> list[GraphedCut]:
        """Places with graphs: the one that requests get who name none, and the scorer's.

        Not a scorer's that refills frames: how many cells stay is known only on the device then.
        """
        cuts = [GraphedCut((min(CUT_AFTER, len(self.visual.blocks) - 1), False))]
        if self._scorer is not None and self._scorer.scorer.shape.refill == "off":
            cuts.append(GraphedCut((self._scorer.scorer.shape.after, True)))
        return cuts

    def get_encoder_cudagraph_config(self) -> EncoderCudaGraphConfig:
        """vLLM's, with two paths for each place to cut."""
        config: EncoderCudaGraphConfig = super().get_encoder_cudagraph_config()  # type: ignore[misc]
        self._kept_rows, self._paths, self._sequences = {}, {}, {}
        if not config.modalities or not self.takes_cuts:
            return config
        # Paths run in this order: what a survivors' path begins with, its dense path has made.
        self._paths = {path: cut for cut in self.graphed_cuts() for path in (cut.dense, cut.survivors)}
        paths = {name: replace(path, allow_zero_tokens=True) for name, path in config.paths.items()}
        packing = {_packed(name): pack_offsets for name in ("cu_seqlens", "cu_window_seqlens")}
        return replace(
            config,
            paths=paths | dict.fromkeys(self._paths, EncoderCudaGraphPathConfig(allow_zero_tokens=True)),
            padding_logics={**config.padding_logics, **packing},
        )

    def get_encoder_cudagraph_item_specs(self, mm_kwargs: dict[str, Any]) -> list[EncoderItemSpec]:
        """Sizes of the items on their paths."""
        specs: list[EncoderItemSpec] = super().get_encoder_cudagraph_item_specs(mm_kwargs)  # type: ignore[misc]
        batch = Batch.of(self, mm_kwargs)
        fits = [self._fits(*sizes) for sizes in batch.thw]
        return [self._spec(*item) for item in zip(specs, batch.plans, fits, strict=True)]

    def _fits(self, frames: int, height: int, width: int) -> bool:
        """Whether graphs have room for the sequences that an item of that size, in patches, is divided into."""
        for name, most in self._sequences.items():
            inside = 1 if name == "cu_seqlens" else self._windows(height, width)
            if frames * inside > most:
                return False
        return True

    def _windows(self, height: int, width: int) -> int:
        side = self.visual.window_size // self.visual.patch_size
        return -(-height // side) * -(-width // side)

    def _spec(self, spec: EncoderItemSpec, plan: ItemPlan | None, fits: bool) -> EncoderItemSpec:
        cut = self._cut_of(plan)
        if plan is None or cut is None:
            return spec if fits else replace(spec, path_output_tokens={DEFAULT: NO_GRAPH})
        if cut.dense not in self._paths:
            return replace(spec, path_output_tokens={DEFAULT: NO_GRAPH})
        if not fits:
            return replace(spec, path_output_tokens={cut.dense: NO_GRAPH, cut.survivors: NO_GRAPH})
        return replace(spec, path_output_tokens={cut.dense: spec.output_tokens, cut.survivors: plan.count})

    def _cut_of(self, plan: ItemPlan | None) -> GraphedCut | None:
        place = None if plan is None else prune_point(plan, self._scorer)
        return None if place is None else GraphedCut(place)

    def select_encoder_cudagraph_items(self, mm_kwargs: dict[str, Any], indices: list[int]) -> dict[str, Any]:
        """Items of a graph batch; our rows go along."""
        chosen: dict[str, Any] = super().select_encoder_cudagraph_items(mm_kwargs, indices)  # type: ignore[misc]
        for name in (*(field_name(m) for m in MODALITIES), "second_per_grid_ts"):
            if mm_kwargs.get(name) is not None:
                chosen[name] = [mm_kwargs[name][i] for i in indices]
        return chosen

    def prepare_encoder_cudagraph_capture_inputs(
        self, token_budget: int, max_batch_size: int, max_frames_per_batch: int, device: torch.device,
        dtype: torch.dtype, path: str = DEFAULT, axis_keys: Any = None,
    ) -> EncoderCudaGraphCaptureInputs:  # fmt: skip
        """Memory that a graph reads, with a batch in it that can be run."""
        inputs: EncoderCudaGraphCaptureInputs = super().prepare_encoder_cudagraph_capture_inputs(  # type: ignore[misc]
            token_budget, max_batch_size, max_frames_per_batch, device, dtype, DEFAULT, axis_keys
        )
        if not self._paths:
            return inputs
        # The largest graphs come first, so these are the most sequences that any graph has room for.
        offsets = {name: value for name, value in inputs.values.items() if name.startswith("cu_")}
        self._sequences = {**{name: len(value) - 1 for name, value in offsets.items()}, **self._sequences}
        cut = self._paths.get(path)
        if cut is None or path == cut.dense:
            return inputs
        few = token_budget * self._unit
        values = dict.fromkeys([HIDDEN, *map(_level, self._levels_before(cut.first))], self._kept_rows[HIDDEN])
        values = {name: rows.new_zeros(few, *rows.shape[1:]) for name, rows in values.items()}
        for name, value in inputs.values.items():
            if name.startswith("rotary"):
                values[name] = value[:few].clone()
            elif name.startswith("max_"):
                values[name] = value
        for name, value in offsets.items():
            # No more sequences than before the cut, and each that is not empty has at least one cell.
            count = min(token_budget, self._sequences[name])
            ends = torch.arange(count + 1, device=value.device, dtype=value.dtype) * self._unit
            values[_packed(name)] = ends if name == "cu_window_seqlens" else ends.clamp(max=1) * few
        return replace(inputs, values=values)

    def prepare_encoder_cudagraph_replay_buffers(
        self, mm_kwargs: dict[str, Any], max_batch_size: int, max_frames_per_batch: int, path: str = DEFAULT
    ) -> EncoderCudaGraphReplayBuffers:
        """What to copy there for a batch."""
        cut = self._paths.get(path)
        if cut is not None and path == cut.survivors:
            return EncoderCudaGraphReplayBuffers(values=self._survivor_values(mm_kwargs, cut))
        replay: EncoderCudaGraphReplayBuffers = super().prepare_encoder_cudagraph_replay_buffers(  # type: ignore[misc]
            self._on_path(mm_kwargs, path)[1], max_batch_size, max_frames_per_batch, DEFAULT
        )
        if cut is not None:
            mm_kwargs[PASS] = self._replayed(cut, replay.values)
        return replay

    def encoder_cudagraph_forward(self, values: dict[str, Any], path: str = DEFAULT) -> Tensor:
        """The tower, or a part of it, on the memory that a graph reads."""
        cut = self._paths.get(path)
        if cut is None:
            return super().encoder_cudagraph_forward(values, path)  # type: ignore[misc]
        if path == cut.survivors:
            return self._behind(values, cut)
        look = self._scorer.scorer.to(self.visual.device).pool if cut.scored else mean_state
        hidden, levels, looked = self.look_at(values.pop("pixel_values"), values, cut.after, look)
        self._keep(HIDDEN, hidden)
        for number, level in levels.items():
            self._keep(_level(number), level)
        self._keep(path, looked)
        return looked

    def encoder_eager_forward(self, mm_kwargs: dict[str, Any], path: str = DEFAULT) -> Tensor:
        """A path for which a batch is too large."""
        cut = self._paths.get(path)
        if cut is not None and path == cut.survivors:
            return self._behind(self._survivor_values(mm_kwargs, cut), cut)
        batch = Batch.of(self, self._on_path(mm_kwargs, path)[1])
        if cut is not None:
            dense = mm_kwargs[PASS] = self.run_dense(batch.pixels, batch.thw, batch.cut(self, cut)[0])
            return dense.looked[-1]
        if all(self._cut_of(plan) is None for plan in batch.plans):
            return super().encoder_eager_forward(batch.kwargs, path)  # type: ignore[misc]
        thw = {f"{batch.modality}_grid_thw": torch.tensor(batch.thw)}
        rows: Tensor = self._encode(batch.kwargs | thw, batch.modality, batch.plans)[0]
        return rows

    def postprocess_encoder_output(
        self, outputs: dict[str, Tensor], indices: list[int], per_item_out_tokens: list[int], dest: Any,
        clone: bool = False, batch_mm_kwargs: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Outputs of a batch's items; those that are cut behind the tower are cut here."""
        kwargs = batch_mm_kwargs or {}
        for path, cut in self._paths.items():
            if path == cut.survivors and path in outputs:
                members, part = self._on_path(kwargs, path)
                placed = self._placed(outputs[path], Batch.of(self, part), kwargs[path])
                for i, rows in zip(members, placed, strict=True):
                    dest[indices[i]] = rows
        if DEFAULT not in outputs:
            return
        members, part = self._on_path(kwargs, DEFAULT)
        batch = Batch.of(self, part)
        if any(self._cut_of(plan) is not None for plan in batch.plans):
            dest[indices[members[0]]] = outputs[DEFAULT]
            return
        chosen = [indices[i] for i in members]
        super().postprocess_encoder_output(outputs, chosen, per_item_out_tokens, dest, clone, part)  # type: ignore[misc]
        for place, (index, plan) in enumerate(zip(chosen, batch.plans, strict=True)):
            if plan is not None:
                dest[index] = self._prune(dest[index], plan, part, batch.modality, place, {})

    def _placed(self, rows: Tensor, batch: Batch, choice: Choice) -> list[Tensor]:
        """Rows of each item with their coordinates, from the output of a survivors' path."""
        counts = [len(kept) for kept in choice.kept]
        parts = in_raster_order(rows[: sum(counts)], choice.order).split(counts)
        left = (Left(part, kept) for part, kept in zip(parts, choice.kept, strict=True))
        return [self._place(one, batch.grids[i], batch.kwargs, batch.modality, i) for i, one in enumerate(left)]

    def _on_path(self, mm_kwargs: dict[str, Any], path: str) -> tuple[list[int], dict[str, Any]]:
        """Items of a batch that take a path, by their places in it, and their keyword arguments."""
        specs = self.get_encoder_cudagraph_item_specs(mm_kwargs)
        members = [i for i, spec in enumerate(specs) if spec.get_path_output_tokens(path)]
        if len(members) == len(specs):
            return members, mm_kwargs
        return members, self.select_encoder_cudagraph_items(mm_kwargs, members)

    def _replayed(self, cut: GraphedCut, values: Mapping[str, Any]) -> DensePass:
        """What a dense graph leaves of a batch of `values`, once it has been replayed."""
        patches = len(values["pixel_values"])
        group = Group([], 0, patches)
        dense = DensePass([group], [{name: value for name, value in values.items() if name != "pixel_values"}])
        levels = {number: self._kept_rows[_level(number)][:patches] for number in self._levels_before(cut.after)}
        dense.put(group, self._kept_rows[HIDDEN][:patches], levels)
        dense.looked.append(self._kept_rows[cut.dense][: patches // self._unit])
        return dense

    def _survivor_values(self, mm_kwargs: dict[str, Any], cut: GraphedCut) -> dict[str, Any]:
        """Choose, and gather what the blocks behind the cut take. The batch gets the choice, under the path's name."""
        batch, dense = Batch.of(self, self._on_path(mm_kwargs, cut.survivors)[1]), mm_kwargs.pop(PASS)
        decides, kept = batch.cut(self, cut)
        cells = self.decide(dense, decides)[1]
        staying = self.staying(cells, dense)
        mm_kwargs[cut.survivors] = Choice(kept, in_tower_order(cells, staying.raster)[1])
        levels = {_level(number): rows for number, rows in staying.levels.items()}
        meta = {_packed(name) if name.startswith("cu_") else name: rows for name, rows in staying.meta.items()}
        return {HIDDEN: staying.hidden, **levels, **meta}

    def _behind(self, values: Mapping[str, Tensor], cut: GraphedCut) -> Tensor:
        """The blocks behind a cut, and the end of the tower."""
        meta = {name.removeprefix(PACKED): value for name, value in values.items()}
        levels = {number: values[_level(number)] for number in self._levels_before(cut.first)}
        rows = self.tower_blocks(values[HIDDEN], range(cut.first, len(self.visual.blocks)), meta, levels)
        return self.tower_end(rows, levels)

    def _levels_before(self, block: int) -> list[int]:
        return [number for number in self.level_blocks() if number < block]

    def _keep(self, name: str, rows: Tensor) -> None:
        """Copy rows to where the next path reads them. The memory is made before the first graph is captured."""
        memory = self._kept_rows.get(name)
        if memory is None or len(memory) < len(rows):
            memory = self._kept_rows[name] = torch.empty_like(rows)
        memory[: len(rows)] = rows


def _level(number: int) -> str:
    return f"level {number}"


def _packed(name: str) -> str:
    return PACKED + name
