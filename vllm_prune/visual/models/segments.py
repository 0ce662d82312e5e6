"""Run lengths of an item's placeholder: which of its prompt tokens stand for visual tokens, and which are text.

vLLM's processors say by a mask which tokens of a placeholder take an embedding. Text between embedded runs (row and
frame separators, timestamps, tile marks) always stays; what a budget shortens is the runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...grid import Grid

Segments = tuple[int, ...]
"""Signed run lengths of a placeholder in prompt order: n for embedded tokens, -n for text."""


def segments_of(mask: Tensor | None, length: int) -> Segments:
    """Segments of a placeholder.

    Args:
        mask: bool [length], True where a token takes an embedding; None where all do.
        length: tokens of the placeholder.
    """
    if mask is None:
        return (length,)
    values, lengths = torch.unique_consecutive(mask.bool(), return_counts=True)
    return tuple(torch.where(values, lengths, -lengths).tolist())


def runs_of(segments: Segments) -> list[int]:
    """Lengths of the embedded runs."""
    return [n for n in segments if n > 0]


def mask_of(segments: Segments) -> Tensor:
    """Inverse of `segments_of`, bool [length]."""
    lengths = torch.tensor([abs(n) for n in segments])
    return torch.tensor([n > 0 for n in segments]).repeat_interleave(lengths)


def with_counts(segments: Segments, counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Each segment with the tokens that it keeps: all of text, and one count per embedded run."""
    left = iter(counts)
    for n in segments:
        yield n, next(left) if n > 0 else -n


@dataclass(frozen=True)
class FixedMask:
    """A mask in the form in which vLLM's prompt updates take one.

    Attributes:
        segments: of the tokens that it is for, none of them empty.
    """

    segments: Segments

    def __call__(self, full: Sequence[int]) -> Tensor:
        """Bool [len(full)]."""
        return mask_of(self.segments)


def thinned(tokens: Sequence[int], segments: Segments, counts: Sequence[int]) -> tuple[list[int], FixedMask]:
    """A placeholder that keeps `counts[i]` tokens of its i-th embedded run and all of its text.

    Args:
        tokens: the unpruned placeholder.
        segments: of it.
        counts: one per embedded run, sum K >= 1.

    Returns:
        The tokens, and the mask of those that take an embedding.
    """
    kept: list[int] = []
    flags: list[bool] = []
    at = 0
    for n, count in with_counts(segments, counts):
        kept += tokens[at : at + count]
        flags += [n > 0] * count
        at += abs(n)
    return kept, FixedMask(segments_of(torch.tensor(flags), len(flags)))


def item_grid(runs: Sequence[int], size: Sequence[int] | None, side: int, rows: bool) -> Grid:
    """Grid of an item.

    Args:
        runs: its embedded runs.
        size: rows and columns in patches, before them perhaps frames, where the processor gives them; several
            frames may share their visual tokens.
        side: patches per side of a visual token.
        rows: whether each run is a row of a picture.
    """
    if size is not None:
        rows_of_cells, cols = (patches // side for patches in size[-2:])
        return Grid(sum(runs) // (rows_of_cells * cols), rows_of_cells, cols)
    if len(set(runs)) > 1:
        return Grid(1, 1, sum(runs))
    return Grid(1, len(runs), runs[0]) if rows else Grid(len(runs), 1, runs[0])
