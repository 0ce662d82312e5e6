"""The oracle of families whose processor transformers has not: prompt and pixels come from vLLM's stock processor.

The processor is the one that vLLM has registered for the model that our adapter is made from, without our mixins and
without a budget. Features of each item, and everything behind them, are transformers' own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal.processing import InputProcessingContext
from vllm.multimodal.processing.context import TimingContext
from vllm.multimodal.processing.inputs import ProcessorInputs
from vllm.plugins import load_general_plugins
from vllm.tokenizers import cached_tokenizer_from_config

from vllm_prune.visual.models.derived import vllm_class
from vllm_prune.visual.models.table import FAMILIES

from ..media import Request
from .oracle import FamilyOracle, Item
from .rows import Row


@dataclass(frozen=True)
class Placed:
    """One medium of an expanded prompt: its fields by name, its first prompt index, and which tokens are embedded."""

    modality: str
    fields: dict[str, Any]
    offset: int
    mask: Tensor


@dataclass(frozen=True)
class Expanded:
    """A prompt with its media in prompt order; the ids are [1, N]."""

    input_ids: Tensor
    media: list[Placed]


class VllmPromptOracle(FamilyOracle):
    """transformers' model behind vLLM's stock processor.

    Args:
        path: the checkpoint as transformers loads it.
        row: of the family, with `embed`.
        engine_path: the checkpoint as vLLM loads it.
        compact: whether kept tokens stand at their place in the shortened prompt.
    """

    def __init__(self, path: Path, row: Row, engine_path: Path, compact: bool = False) -> None:
        super().__init__(path, row, compact)
        # vLLM remembers the class of a checkpoint, so ours are to be known by now.
        load_general_plugins()
        architecture = json.loads((engine_path / "config.json").read_text())["architectures"][0]
        config = EngineArgs(
            str(engine_path), dtype="float32", limit_mm_per_prompt=row.limits, skip_mm_profiling=True, **row.options
        ).create_model_config()
        self.tokenizer: Any = cached_tokenizer_from_config(config)
        parent = vllm_class(FAMILIES[architecture].parent)
        self.stock: Any = parent._processor_factory.build_processor(InputProcessingContext(config, self.tokenizer))

    def expand(self, text: str, images: Sequence[Any], videos: Sequence[Any]) -> Expanded:
        """A prompt as vLLM's processor expands it."""
        data = self.row.data(text, images, videos)
        items = self.stock.info.parse_mm_data({key: each for key, each in data.items() if each})
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        made = self.stock.apply(ProcessorInputs(ids, items), TimingContext(enabled=False))
        media = [
            Placed(modality, _fields(made["mm_kwargs"][modality][i]), placed.offset, _mask(placed))
            for modality, ranges in made["mm_placeholders"].items()
            for i, placed in enumerate(ranges)
        ]
        media.sort(key=lambda placed: placed.offset)
        return Expanded(torch.tensor([made["prompt_token_ids"]]), media)

    def laid_out(self, inputs: Expanded) -> tuple[Tensor, Tensor]:
        """Embeddings [N, width] with transformers' features in place, and positions [1, N]."""
        ids = inputs.input_ids[0]
        embedded = self.hf.get_input_embeddings()(ids).clone()
        assert self.row.embed is not None
        for placed in inputs.media:
            embedded[_slots(placed)] = self.row.embed(self.hf, placed.modality, placed.fields)
        return embedded, torch.arange(len(ids))[None]

    def items(self, request: Request, ids: Tensor, inputs: Expanded) -> Iterator[Item]:
        """Media in prompt order."""
        for placed, modality in zip(inputs.media, self.row.order(request.prompt), strict=True):
            runs = [len(list(run)) for embedded, run in groupby(placed.mask.tolist()) if embedded]
            before, behind = self.row.marks
            if before or behind:
                runs = [sum(runs) - before - behind]
            slots = _slots(placed)[before : before + sum(runs)]
            yield Item(modality, runs, slots, None if self.row.grid is None else self.row.grid(placed.fields))


def _fields(item: Any) -> dict[str, Any]:
    return {name: element.data for name, element in item.items()}


def _mask(placed: Any) -> Tensor:
    whole: Tensor = torch.ones(placed.length, dtype=torch.bool) if placed.is_embed is None else placed.is_embed
    return whole


def _slots(placed: Placed) -> Tensor:
    return placed.offset + placed.mask.nonzero()[:, 0]
