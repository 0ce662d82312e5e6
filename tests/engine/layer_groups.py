"""Engines whose layers are in several groups, what they kept by layer, and the oracle's caches shortened by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from vllm_prune.budget.kv import KvSpec
from vllm_prune.kv.strategies._depth import DepthBudget
from vllm_prune.kv.strategies.base import KvStrategy, LayerView, Scores

from .engines import answer_of
from .eviction import EVICTING, Evictor, compactions, evict
from .media import Request
from .oracle import Oracle, compare

LAYERS = 3
"""Of the tiny checkpoints."""

NEVER = 1 << 30


class Stairs(KvStrategy):
    """Random rows, and in each group of layers half as many as in the one before."""

    name = "stairs"
    paper = summary = "test"
    layered = True

    def group_counts(self, budget: DepthBudget) -> tuple[int, ...]:
        """C, C / 2, C / 4 ..."""
        return tuple(budget.count >> number for number in range(len(budget.layers)))

    def score(self, view: LayerView) -> Scores:
        """Noise of its own for every layer and head."""
        noise = torch.Generator().manual_seed(view.seed % 1000 + 7 * view.layer + view.rows)
        return Scores(torch.rand(len(view.keys), view.rows, generator=noise).to(view.keys.device))


def options(starts: Sequence[int]) -> dict[str, Any]:
    """Options of an engine whose groups of layers begin at these layers."""
    return {"additional_config": {"vllm_prune": {"launched": True, "layer_groups": list(starts)}}, **EVICTING}


@contextmanager
def journal_by_layer() -> Iterator[dict[str, dict[int, list[Tensor]]]]:
    """Record by request, without the engine's suffix, and layer what each compaction kept, int64 [H, C] positions."""
    recorded: dict[str, dict[int, list[Tensor]]] = {}

    def record(compactor: Any, command: Any, request: Any) -> None:
        kept = recorded.setdefault(command.request_id.split("-")[0], {})
        for layer in compactor.cache_groups[command.group][1]:
            kept.setdefault(layer, []).append(request.positions[layer].clone().cpu())

    with compactions(record):
        yield recorded


class LayeredEvictor:
    """Shortens transformers' caches group by group, each as if its layers were the whole model.

    Args:
        prompt: tokens of the prompt.
        starts: first layer of every group but the first.
        counts: rows that each group keeps.
        buffer: rows past its count at which a group is compacted again.
        kept: by layer, what each compaction kept.
    """

    def __init__(
        self, prompt: int, starts: Sequence[int], counts: Sequence[int], buffer: int, kept: dict[int, list[Tensor]]
    ) -> None:
        bounds = [0, *starts, LAYERS]
        self.ranges = [range(*pair) for pair in pairwise(bounds)]
        self.evictors = []
        for layers, count in zip(self.ranges, counts, strict=True):
            compactions = zip(*(kept.get(layer, []) for layer in layers), strict=True)
            self.evictors.append(Evictor(prompt, count, buffer, [list(each) for each in compactions]))

    def __call__(self, layers: list[Any], computed: int) -> None:
        for inside, evictor in zip(self.ranges, self.evictors, strict=True):
            evictor([layers[layer] for layer in inside], computed)

    @property
    def compactions(self) -> list[int]:
        """Number of compactions of each group."""
        for evictor in self.evictors:
            assert evictor.done == len(evictor.kept)
        return [evictor.done for evictor in self.evictors]


def counts_of(spec: KvSpec, prompt: int, visual: Sequence[bool], starts: Sequence[int]) -> tuple[list[int], int]:
    """Rows that each group keeps, and the buffer, worked out anew for the strategies of these tests."""
    sizes = [end - start for start, end in zip([0, *starts], [*starts, LAYERS], strict=True)]
    count = spec.count(prompt)
    if spec.strategy == "stairs":
        return [count >> number for number in range(len(sizes))], spec.buffer
    if spec.strategy == "visual_exit":
        text = prompt - sum(visual[: prompt - spec.window])
        late = (LAYERS * count - sizes[0] * prompt) // (LAYERS - sizes[0])
        return [prompt, *[min(prompt, max(text, late))] * len(starts)], NEVER
    if spec.strategy == "pyramid_kv" and count < prompt:
        scored = count - spec.window
        most = min(2 * scored - scored / 20, prompt - spec.window)
        ramp = [most - 2 * (most - scored) * layer / (LAYERS - 1) for layer in range(LAYERS)]
        ends = list(accumulate(sizes))
        means = [sum(ramp[end - size : end]) / size for end, size in zip(ends, sizes, strict=True)]
        counts = [spec.window + int(mean + 1e-9) for mean in means]
        left = LAYERS * count - sum(size * each for size, each in zip(sizes, counts, strict=True))
        for number, size in enumerate(sizes):
            more = min(left // size, prompt - counts[number])
            counts[number] += more
            left -= more * size
        return counts, spec.buffer
    return [count] * len(sizes), spec.buffer


def compare_with_layered(
    llm: Any,
    requests: Sequence[Request],
    specs: Sequence[KvSpec | None],
    steps: int,
    oracle: Oracle,
    starts: Sequence[int],
) -> list[list[int]]:
    """Compare answers with transformers, in each group of layers the same rows taken out.

    Returns:
        Compactions of each group, for each request with a budget.
    """
    pads = {oracle.config.image_token_id, oracle.config.video_token_id}
    with journal_by_layer() as recorded:
        outputs = evict(llm, requests, specs, steps)
    compactions = []
    for request, spec, output in zip(requests, specs, outputs, strict=True):
        evictor = None
        if spec is not None:
            visual = [token in pads for token in output.prompt_token_ids]
            counts, buffer = counts_of(spec, len(visual), visual, starts)
            kept = recorded.get(output.request_id, {})
            evictor = LayeredEvictor(len(visual), starts, counts, buffer, kept)
        compare(answer_of(output), oracle.answer(request, steps, evictor))
        if evictor is not None:
            compactions.append(evictor.compactions)
    return compactions
