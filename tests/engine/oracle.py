"""What a pruned request must answer, computed with transformers.

The prompt is expanded by the HF processor, pruned media tokens are dropped together with their positions,
and the rest is decoded greedily. Positions are explicit, since transformers and vLLM disagree on text
after a Qwen2.5-VL video. Counts are worked out anew; which cells to keep is the strategy's own answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid
from vllm_prune.visual.frontend.frame_split import frame_counts
from vllm_prune.visual.strategies.base import Context

from .counts import budgets
from .media import Request, Visual
from .rotations import axes_of, of_members, rotating

TOLERANCE = 1e-4
# Written in place of a pad token that a user typed, so that the HF processor does not take it for a medium.
STAND_IN = "<|object_ref_start|>"

Evict = Callable[[list[Any], int], None]
"""Shortens transformers' cache layers, given how many tokens have been computed."""


@dataclass(frozen=True)
class Answer:
    """Prompt ids after pruning, greedy tokens, and the log-probability of each."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Expected(Answer):
    """The oracle's answer, with the prompt's length before pruning and the tokens kept of each item."""

    unpruned: int
    kept: tuple[int, ...]


@dataclass
class Item:
    """One medium of a prompt: its grid, temporal step, features, pixels, prompt slots and kept cells.

    `members` are the cells whose positions each kept one carries, [K, P]; None where that is its own alone.
    """

    modality: str
    grid: Grid
    step: float
    features: Tensor
    deepstack: list[Tensor]
    patches: Tensor
    slots: Tensor | None = None
    kept: Tensor | None = None
    members: Tensor | None = None


class Mismatch(AssertionError):
    """An answer that is not the expected one."""


def compare(answer: Answer, expected: Answer) -> float:
    """Largest log-probability error of an answer that is right otherwise. Raises `Mismatch`."""
    if answer.prompt != expected.prompt:
        raise Mismatch(f"prompts differ: {len(answer.prompt)} and {len(expected.prompt)} tokens")
    if answer.tokens != expected.tokens:
        raise Mismatch(f"tokens differ: {answer.tokens} and {expected.tokens}")
    error = max(abs(a - b) for a, b in zip(answer.logprobs, expected.logprobs, strict=True))
    # Equal tokens alone say little: with height and width swapped, most greedy answers stay the same.
    if not error < TOLERANCE:
        raise Mismatch(f"log-probabilities differ by {error}")
    return error


def greedy(steps: int, scores_behind: Callable[[Sequence[int]], Tensor]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Greedy tokens, and the log-probability of each.

    Args:
        steps: number of tokens.
        scores_behind: takes the tokens so far, all of which but the last it has seen, and returns the scores [V] of
            what follows.
    """
    tokens: list[int] = []
    logprobs: list[float] = []
    for _ in range(steps):
        scores = scores_behind(tokens).log_softmax(-1)
        tokens.append(int(scores.argmax()))
        logprobs.append(float(scores.max()))
    return tuple(tokens), tuple(logprobs)


class Oracle:
    """transformers' model and processor of one checkpoint."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.hf: Any = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
        self.processor: Any = AutoProcessor.from_pretrained(path)
        self.config: Any = self.hf.config
        self.qwen3 = self.config.model_type.startswith("qwen3_")

    @torch.no_grad()
    def answer(self, request: Request, steps: int, evict: Evict | None = None) -> Expected:
        """Expected answer of `steps` tokens; `evict` shortens the cache before each decoding step."""
        inputs, ids, literal = self.expand(request)
        items = self.items(inputs, ids, literal)
        positions, following = self.positions(ids, literal, items)
        self.select(request.visual, items)
        embeddings = self.hf.get_input_embeddings()(ids)
        keep = torch.ones(len(ids), dtype=torch.bool)
        for item in items:
            assert item.slots is not None
            assert item.kept is not None
            embeddings[item.slots] = item.features
            keep[item.slots] = False
            keep[item.slots[item.kept]] = True
        table = self.turned(positions, items)
        with rotating(self.hf.model.language_model, None if table is None else table[keep]):
            tokens, logprobs = self._decode(
                embeddings[keep], positions[:, keep], following, self._deepstack(items, keep), steps, evict
            )
        kept = tuple(len(item.kept) for item in items if item.kept is not None)
        return Expected(tuple(ids[keep].tolist()), tokens, logprobs, len(ids), kept)

    def turned(self, positions: Tensor, items: list[Item]) -> Tensor | None:
        """Position of every frequency of the unpruned prompt, [N, F]; None where it follows from those of the axes."""
        if all(item.members is None for item in items):
            return None
        axes = axes_of(self.config.text_config)
        table = positions[axes].t().contiguous()
        for item in items:
            if item.members is not None:
                assert item.slots is not None
                table[item.slots[item.kept]] = of_members(positions, item.slots[item.members], axes)
        return table

    def expand(self, request: Request) -> tuple[Any, Tensor, Tensor]:
        """HF processor output, prompt ids before pruning, and which of these a user typed as a literal pad."""
        from transformers.video_utils import VideoMetadata

        media: dict[str, Any] = {}
        if request.images:
            media["images"] = list(request.images)
        if request.videos:
            about = [{k: v for k, v in m.items() if k != "do_sample_frames"} for _, m in request.videos]
            media["videos"] = [frames for frames, _ in request.videos]
            media["video_metadata"] = [VideoMetadata(**m) for m in about]
            media["do_sample_frames"] = False
        text = _without_literals(request)
        inputs = self.processor(text=[text], return_tensors="pt", **media)
        ids = inputs.input_ids[0]
        literal = ids == self.processor.tokenizer.convert_tokens_to_ids(STAND_IN)
        ids[literal] = self.config.image_token_id
        return inputs, ids, literal

    def items(self, inputs: Any, ids: Tensor, literal: Tensor) -> list[Item]:
        """Media in prompt order, each with the features of HF's tower and its slots."""
        waiting = {m: iter(self._encode(inputs, m)) for m in ("image", "video") if f"{m}_grid_thw" in inputs}
        names = {self.config.image_token_id: "image", self.config.video_token_id: "video"}
        is_pad = [int(token) in names and not typed for token, typed in zip(ids, literal, strict=True)]
        pads = [i for i, pad in enumerate(is_pad) if pad]
        found, at = [], 0
        while at < len(pads):
            item = next(waiting[names[int(ids[pads[at]])]])
            item.slots = torch.tensor(pads[at : at + item.grid.tokens])
            at += item.grid.tokens
            found.append(item)
        return found

    def _encode(self, inputs: Any, modality: str) -> Iterator[Item]:
        pixels = inputs["pixel_values" if modality == "image" else "pixel_values_videos"]
        thw = inputs[f"{modality}_grid_thw"]
        features, deepstack = self.tower(pixels, thw)
        sizes = (thw.prod(-1) // 4).tolist()
        levels = [level.split(sizes) for level in deepstack]
        seconds = inputs.get("second_per_grid_ts") if modality == "video" else None
        for i, (rows, patches) in enumerate(
            zip(features.split(sizes), pixels.split(thw.prod(-1).tolist()), strict=True)
        ):
            frames, height, width = thw[i].tolist()
            step = 1.0
            if seconds is not None:
                # vLLM carries this field as float32, and rounding decides some positions.
                step = float(np.float32(seconds[i])) * self.config.vision_config.tokens_per_second
            yield Item(
                modality, Grid(frames, height // 2, width // 2), step, rows, [level[i] for level in levels], patches
            )

    def tower(self, pixels: Tensor, thw: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Merged features of all items, and those of each deepstack level."""
        output = self.hf.model.visual(pixels.float(), grid_thw=thw, return_dict=True)
        return output.pooler_output, list(getattr(output, "deepstack_features", None) or [])

    def positions(self, ids: Tensor, literal: Tensor, items: Sequence[Item]) -> tuple[Tensor, int]:
        """int64 [3, N] of the unpruned prompt, and the position that follows it."""
        positions = torch.zeros(3, len(ids), dtype=torch.long)
        blocks = {int(slots[0]): grid for item in items for slots, grid in self._blocks(item)}
        at = following = 0
        while at < len(ids):
            grid = blocks.get(at)
            if grid is None:
                grid = torch.zeros(3, 1, dtype=torch.long)
            positions[:, at : at + grid.shape[1]] = grid + following
            following += int(grid.max()) + 1
            at += grid.shape[1]
        return positions, following

    def _blocks(self, item: Item) -> Iterator[tuple[Tensor, Tensor]]:
        """Slots and relative positions of every grid that is laid out on its own: Qwen3-VL's frames, else the item."""
        assert item.slots is not None
        alone = self.qwen3 and item.modality == "video"
        frames = 1 if alone else item.grid.frames
        relative = np.indices((frames, item.grid.rows, item.grid.cols))
        relative[0] = np.floor(relative[0] * item.step)
        for slots in item.slots.split(item.grid.per_frame if alone else item.grid.tokens):
            yield slots, torch.from_numpy(relative.reshape(3, -1))

    def select(self, visual: Visual, items: Sequence[Item]) -> None:
        """Fill in `kept` of every item."""
        of = {m: [item for item in items if item.modality == m] for m in ("image", "video")}
        plans = budgets(visual, {m: [item.grid.tokens for item in of[m]] for m in of if of[m]})
        options = (visual or {}).get("options")
        for modality, planned in plans.items():
            for i, (name, count) in enumerate(planned):
                item = of[modality][i]
                item.kept = torch.arange(count)
                if count < item.grid.tokens:
                    item.kept = self.choose(item, name, count, options, of[modality][:i])

    def choose(
        self, item: Item, name: str, count: int, options: dict[str, Any] | None, earlier: Sequence[Item]
    ) -> Tensor:
        """Kept cells of one item, ascending; `earlier` are the items of its modality before it."""
        strategy = VISUAL.create(name, options)
        per_frame = None
        if self.qwen3 and item.modality == "video":
            per_frame = frame_counts(count, item.grid, item.patches, VISUAL.strategy_class(name).frame_split)
        reduction = strategy.reduce(item.features, item.grid, count, Context(), per_frame)
        if reduction.merge is not None:
            levels = [item.features, *item.deepstack]
            item.features, *item.deepstack = (
                level.index_copy(0, reduction.kept, reduction.rows(level)) for level in levels
            )
            positions = getattr(strategy.options, "positions", 1)
            item.members = reduction.members_of(positions) if positions > 1 else None
        return reduction.kept

    def _deepstack(self, items: Sequence[Item], keep: Tensor) -> dict[str, Any]:
        if not any(item.deepstack for item in items):
            return {}
        visual = torch.zeros(len(keep), dtype=torch.bool)
        levels = [torch.zeros(len(keep), items[0].features.shape[1]) for _ in items[0].deepstack]
        for item in items:
            visual[item.slots] = True
            for level, rows in zip(levels, item.deepstack, strict=True):
                level[item.slots] = rows
        visual &= keep
        return {"visual_pos_masks": visual[keep][None], "deepstack_visual_embeds": [level[visual] for level in levels]}

    def _decode(
        self,
        embeddings: Tensor,
        positions: Tensor,
        following: int,
        deepstack: dict[str, Any],
        steps: int,
        evict: Evict | None,
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        from transformers.cache_utils import DynamicCache

        model, cache = self.hf.model.language_model, DynamicCache(config=self.config.text_config)

        def scores_behind(tokens: Sequence[int]) -> Tensor:
            step = {"inputs_embeds": embeddings[None], "position_ids": positions[:, None], **deepstack}
            if tokens:
                embedded = self.hf.get_input_embeddings()(torch.tensor([tokens[-1:]]))
                place = torch.full((3, 1, 1), following + len(tokens) - 1)
                step = {"inputs_embeds": embedded, "position_ids": place}
                if evict is not None:
                    evict(cache.layers, len(embeddings) + len(tokens) - 1)
            hidden = model(past_key_values=cache, **step).last_hidden_state
            return self.hf.lm_head(hidden[0, -1])

        return greedy(steps, scores_behind)


def _without_literals(request: Request) -> str:
    """The prompt with image pads in excess of its images replaced; the first pads are those that get an image."""
    first, *rest = request.prompt.split("<|image_pad|>")
    ends = ["<|image_pad|>"] * len(request.images) + [STAND_IN] * (len(rest) - len(request.images))
    return first + "".join(end + piece for end, piece in zip(ends, rest, strict=True))
