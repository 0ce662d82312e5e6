"""What a family with media of its own must answer, from transformers' whole model.

transformers embeds the prompt, places the media and lays out positions; its language model is stopped there, pruned
tokens are dropped together with their positions, and the rest is decoded greedily. Which tokens belong to which item is
seen from processing each item alone; how many each run keeps is worked out anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid
from vllm_prune.visual.strategies.base import Context

from ..counts import budgets, spread
from ..media import Request
from ..oracle import Answer, Evict, Expected, greedy
from .rows import Row


@dataclass
class Item:
    """One medium of a prompt: its runs of embedded tokens, its prompt slots, and frames, rows and columns if known."""

    modality: str
    runs: list[int]
    slots: Tensor
    grid: Grid | None


class _Stop(Exception):
    """Raised where transformers' language model would start."""


class FamilyOracle:
    """transformers' model and processor of one checkpoint.

    Args:
        path: the checkpoint as transformers loads it.
        row: of the family.
        compact: whether kept tokens stand at their place in the shortened prompt.
    """

    def __init__(self, path: Path, row: Row, compact: bool = False) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

        self.hf: Any = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
        self.row, self.compact = row, compact
        self.processor: Any = AutoProcessor.from_pretrained(path) if row.embed is None else None
        decoder: Any = self.hf.get_decoder()
        self.language: Any = getattr(decoder, "model", decoder)
        self.pads = AutoTokenizer.from_pretrained(path).convert_tokens_to_ids(list(row.pads))

    @torch.no_grad()
    def answer(self, request: Request, steps: int, evict: Evict | None = None) -> Expected:
        """Expected answer of `steps` tokens; `evict` shortens the cache before each decoding step."""
        inputs = self.expand(request.prompt, request.images, request.videos)
        ids = inputs.input_ids[0]
        embeddings, positions = self.laid_out(inputs)
        items = list(self.items(request, ids, inputs))
        keep = torch.ones(len(ids), dtype=torch.bool)
        kept = []
        for item, (strategy, count) in zip(items, self.plans(request, items), strict=True):
            chosen = self.choose(item, strategy, count, embeddings[item.slots])
            keep[item.slots] = False
            keep[item.slots[chosen]] = True
            kept.append(len(chosen))
        following = int(positions.max()) + 1
        places = positions[:, keep]
        if self.compact:
            places, following = torch.arange(int(keep.sum())).expand(len(positions), -1), int(keep.sum())
        tokens, logprobs = self.decode(embeddings[keep], places, following, steps, evict)
        return Expected(tuple(self.one_pad(ids[keep].tolist())), tokens, logprobs, len(ids), tuple(kept))

    def expand(self, text: str, images: Sequence[Any], videos: Sequence[Any]) -> Any:
        """HF processor output of a prompt with its media."""
        from transformers.video_utils import VideoMetadata

        data: dict[str, Any] = {"images": list(images)} if images else {}
        if videos:
            data["videos"] = [frames for frames, _ in videos]
            if self.row.video_metadata:
                about = [{k: v for k, v in m.items() if k != "do_sample_frames"} for _, m in videos]
                data |= {"video_metadata": [VideoMetadata(**m) for m in about], "do_sample_frames": False}
        inputs = self.processor(text=[text], return_tensors="pt", **data)
        # One of the processors gives bfloat16.
        for name, values in inputs.items():
            if isinstance(values, Tensor) and values.is_floating_point():
                inputs[name] = values.float()
        return inputs

    def laid_out(self, inputs: Any) -> tuple[Tensor, Tensor]:
        """Embeddings [N, width] and positions [1 or 3, N] that transformers hands its language model."""
        language, seen = self.language, {}
        forward = language.forward

        def stop(*args: Any, **kwargs: Any) -> None:
            seen.update(kwargs)
            raise _Stop

        language.forward = stop
        try:
            with self.told_apart(inputs):
                self.hf(**inputs)
        except _Stop:
            pass
        finally:
            language.forward = forward
        embeddings, positions = seen["inputs_embeds"][0], seen.get("position_ids")
        if positions is None or positions.ndim < 3:
            return embeddings, torch.arange(len(embeddings))[None]
        return embeddings, positions[-3:, 0]

    @contextmanager
    def told_apart(self, inputs: Any) -> Iterator[None]:
        """Places images and videos by the processor's token types.

        GLM-4.1V writes one pad for both, and transformers' model puts each modality's features into all of them, which
        fails for a prompt that has both.
        """
        types = inputs.get("mm_token_type_ids")
        if not self.row.one_pad_for_all or types is None:
            yield
            return
        masks = (types == 1)[..., None], (types == 2)[..., None]
        with patch.object(self.hf.model, "get_placeholder_mask", lambda *args, **kwargs: masks):
            yield

    def items(self, request: Request, ids: Tensor, inputs: Any) -> Iterator[Item]:
        """Media in prompt order."""
        slots, at = [i for i, token in enumerate(ids.tolist()) if token in self.pads], 0
        waiting = {"image": iter(request.images), "video": iter(request.videos)}
        grids = {m: iter(inputs.get(f"{m}_grid_thw", ())) for m in waiting}
        for modality in self.row.order(request.prompt):
            runs = self.runs_alone(modality, next(waiting[modality]))
            thw = next(grids[modality], None)
            grid = None if thw is None else Grid(int(thw[0]), int(thw[1]) // 2, int(thw[2]) // 2)
            yield Item(modality, runs, torch.tensor(slots[at : at + sum(runs)]), grid)
            at += sum(runs)
        assert at == len(slots)

    def runs_alone(self, modality: str, item: Any) -> list[int]:
        """Lengths of an item's runs of embedded tokens."""
        image = modality == "image"
        text = self.row.image if image else self.row.video
        ids = self.expand(str(text), [item] if image else [], [] if image else [item]).input_ids[0].tolist()
        return [len(list(run)) for embedded, run in groupby(token in self.pads for token in ids) if embedded]

    def plans(self, request: Request, items: Sequence[Item]) -> Iterator[tuple[str, int]]:
        """Strategy and count of each item."""
        sizes = {m: [sum(item.runs) for item in items if item.modality == m] for m in ("image", "video")}
        plans = {m: iter(each) for m, each in budgets(request.visual, {m: n for m, n in sizes.items() if n}).items()}
        return (next(plans[item.modality]) for item in items)

    def choose(self, item: Item, name: str, count: int, features: Tensor) -> Tensor:
        """Kept tokens of one item, int64, ascending."""
        if count == len(features):
            return torch.arange(count)
        strategy, runs = VISUAL.create(name, None), len(item.runs)
        if runs == 1:
            return strategy.select(features, item.grid or Grid(1, 1, count_of(item)), count, Context())
        if len(set(item.runs)) > 1:
            return self.run_by_run(item.runs, strategy, count, features)
        grid = item.grid if item.grid is not None and item.grid.frames == runs else Grid(runs, 1, item.runs[0])
        # As even as whole numbers allow, the first ones more; the runs of these items are equally long.
        per_run = [count // runs + (i < count % runs) for i in range(runs)]
        return strategy.select(features, grid, count, Context(), per_run)

    def run_by_run(self, runs: Sequence[int], strategy: Any, count: int, features: Tensor) -> Tensor:
        """Kept tokens where the runs of an item have several lengths: each run is chosen from alone."""
        kept, first = [], 0
        for size, share, rows in zip(runs, spread(count, runs), features.split(list(runs)), strict=True):
            if share:
                all_of_them = torch.arange(size)
                chosen = all_of_them if share == size else strategy.select(rows, Grid(1, 1, size), share, Context())
                kept.append(first + chosen)
            first += size
        return torch.cat(kept)

    def decode(
        self, embeddings: Tensor, positions: Tensor, following: int, steps: int, evict: Evict | None = None
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Greedy tokens, and the log-probability of each."""
        from transformers.cache_utils import DynamicCache

        model, cache = self.language, DynamicCache(config=self.hf.config.get_text_config())

        def scores_behind(tokens: Sequence[int]) -> Tensor:
            step = {"inputs_embeds": embeddings[None], "position_ids": self.for_hf(positions)}
            if tokens:
                embedded = self.hf.get_input_embeddings()(torch.tensor([tokens[-1:]]))
                place = torch.full((len(positions), 1), following + len(tokens) - 1)
                step = {"inputs_embeds": embedded, "position_ids": self.for_hf(place)}
                if evict is not None:
                    evict(cache.layers, len(embeddings) + len(tokens) - 1)
            hidden = model(past_key_values=cache, **step).last_hidden_state
            return self.hf.get_output_embeddings()(hidden[0, -1])

        return greedy(steps, scores_behind)

    def for_hf(self, positions: Tensor) -> Tensor:
        """Positions [1 or 3, N] with the batch axis where transformers has it."""
        return positions if len(positions) == 1 else positions[:, None]

    def one_pad(self, ids: Sequence[int]) -> list[int]:
        """Prompt ids in which all pads are the first one, as transformers and vLLM may differ in which they write."""
        return [self.pads[0] if token in self.pads else token for token in ids]

    def in_our_pads(self, answer: Answer) -> Answer:
        """An engine's answer in the same terms."""
        return Answer(tuple(self.one_pad(answer.prompt)), answer.tokens, answer.logprobs)


def count_of(item: Item) -> int:
    """Visual tokens of an item."""
    return sum(item.runs)
