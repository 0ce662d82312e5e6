"""VQToken's rows beside those of its authors' code: the same weights, frames and first centers of groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vllm_prune.catalogue import VISUAL
from vllm_prune.visual.strategies._frames import Frames
from vllm_prune.visual.strategies._trained import LanguageShape, Network
from vllm_prune.visual.strategies.maths import SKETCH, drawn_centers, sketch, unit_rows
from vllm_prune.visual.strategies.vqtoken import VqToken

from .cases import Case

SEED = 3
CLOSE = 0.01
"""Rows are the same when they differ by less than this share of their length."""


@dataclass
class Rows:
    """Numbers of a case's rows, and of those among ours that are theirs."""

    theirs: Tensor | None = None

    def make(self, code: Mapping[str, Any], case: Case) -> Tensor:
        """Rows of the authors' code: their groups, then their decoder, as their model calls them."""
        build, groups = code["KMeansTorch"], code["kmeans_clustering_tokens_torch"]

        def with_our_draws(n_clusters: int, max_iter: int) -> Any:
            # Theirs is called by other names than its parameters have, and draws from the global generator.
            made = build(num_clusters=n_clusters, max_iteration=max_iter)
            made.sample_init_centroids = lambda units: units[_first(case, n_clusters)]
            return made

        groups.__globals__["KMeansTorch"] = with_our_draws
        maps, codes = groups(case.frames, case.count)
        layer = code["VQAttn"](case.grid.per_frame, case.tokens.shape[1], num_heads=8).eval()
        layer.load_state_dict(_network(case).tensors)
        with torch.no_grad():
            self.theirs = layer.cross_attention_weighted_clusters(maps.float(), codes)
        return torch.arange(case.count)

    def compare(self, name: str, case: Case, count: int) -> Tensor:
        """Numbers of our rows that are theirs; others have numbers of their own."""
        unpooled = Frames(case.frames, case.grid.per_frame)
        context = replace(case.context, seed=SEED, network=_network(case), unpooled=unpooled)
        rows = VISUAL.create(name).reduce(case.tokens, case.grid, count, context).rows(case.tokens)
        assert self.theirs is not None
        far = (rows - self.theirs).norm(dim=1) >= CLOSE * self.theirs.norm(dim=1)
        return torch.arange(count) + far * count


def _first(case: Case, count: int) -> Tensor:
    return drawn_centers(unit_rows(case.tokens) if count <= SKETCH else sketch(case.tokens), count, SEED)


def _network(case: Case) -> Network:
    """Random layers of the authors' layout, whose MLP is as wide as PyTorch makes it."""
    width = case.tokens.shape[1]
    language = LanguageShape(width, 8, 8, frame_patches=case.grid.per_frame)
    hidden = {"transformer_decoder.layers.0.linear1.bias": (2048,)}
    generator = torch.Generator().manual_seed(SEED)
    shapes = VqToken.layout(hidden, language)
    return Network(
        {name: torch.randn(shape, generator=generator) * shape[-1] ** -0.5 for name, shape in shapes.items()}, language
    )
