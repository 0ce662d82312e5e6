"""VQToken's groups and rows beside those of its authors' code: the same frames, first centers and weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vllm_prune.catalogue import VISUAL
from vllm_prune.visual.strategies._frames import Frames
from vllm_prune.visual.strategies._trained import LanguageShape, Network
from vllm_prune.visual.strategies.maths import SKETCH, drawn_centers, sketch, unit_rows
from vllm_prune.visual.strategies.vqtoken import VqToken, _decode

from .cases import Case

SEED = 3
CLOSE = 1e-3
"""Rows are the same when they differ by less than this share of their length."""


@dataclass
class Groups:
    """What is compared of a case, as numbers: each patch with its group, then rows that are made of their groups."""

    theirs: tuple[Tensor, Tensor, Tensor] | None = None

    def make(self, code: Mapping[str, Any], case: Case) -> Tensor:
        """Those of the authors' code: their groups, then their decoder, as their model calls them."""
        build, grouped = code["KMeansTorch"], code["kmeans_clustering_tokens_torch"]

        def with_our_draws(n_clusters: int, max_iter: int) -> Any:
            # Theirs is called by other names than its parameters have, and draws from the global generator.
            made = build(num_clusters=n_clusters, max_iteration=max_iter)
            made.sample_init_centroids = lambda units: units[_first(case, n_clusters)]
            return made

        grouped.__globals__["KMeansTorch"] = with_our_draws
        maps, codes = grouped(case.frames, case.count)
        layer = code["VQAttn"](case.grid.per_frame, case.tokens.shape[1], num_heads=8).eval()
        layer.load_state_dict(_network(case).tensors)
        with torch.no_grad():
            rows = layer.cross_attention_weighted_clusters(maps.float(), codes)
        self.theirs = maps, codes, rows
        return _numbered(maps, torch.zeros(case.count), case.count)

    def compare(self, name: str, case: Case, _: int) -> Tensor:
        """Ours; a row that is not theirs has a number of its own."""
        assert self.theirs is not None
        maps, codes, rows = self.theirs
        strategy = VISUAL.create(name)
        assert isinstance(strategy, VqToken)
        _, ours = strategy._codebook(Frames(case.frames, case.grid.per_frame), case.count, SEED)
        made = _decode(_network(case), maps.float(), codes)[torch.arange(case.count) % len(maps)]
        return _numbered(ours, (made - rows).norm(dim=1) >= CLOSE * rows.norm(dim=1), case.count)


def _numbered(maps: Tensor, far: Tensor, count: int) -> Tensor:
    labels = maps.flatten().long()
    rows = len(labels) * count + torch.arange(count) + far.long() * count
    return torch.cat([torch.arange(len(labels)) * count + labels, rows])


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
