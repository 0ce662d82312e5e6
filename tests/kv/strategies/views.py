"""Random layer views for tests."""

from __future__ import annotations

from dataclasses import replace

import torch

from vllm_prune.kv.strategies.base import TEXT, LayerView, Scores

DIM = 16
torch.set_num_threads(1)


def view(
    count: int, group: int, rows: int, media: int, window: int, seed: int = 0, heads: tuple[int, int] | None = None
) -> LayerView:
    """A prompt of `rows` tokens with `media` screenshots of three to six tokens, as far as they fit.

    `heads` takes a range of the KV heads, as a tensor-parallel rank holds them.
    """
    source = torch.Generator().manual_seed(seed)
    labels = torch.full((rows,), TEXT)
    at = 1
    for item in range(media):
        size = 3 + (seed + item) % 4
        labels[at : at + size] = item
        at += size + 1
    labels = torch.where(labels >= 0, labels, TEXT)
    keys = torch.randn(count, rows, DIM, generator=source)
    values = torch.randn(count, rows, DIM, generator=source)
    queries = torch.randn(window, count, group, DIM, generator=source)
    saliency = torch.rand(rows, generator=source) * 9 + 1
    normed = torch.rand(rows, generator=source) + 4
    first, last = heads or (0, count)
    coordinates = _coordinates(labels)
    angles = torch.arange(64)[:, None] * 10000.0 ** (-torch.arange(DIM // 2) / (DIM // 2))
    held = values[first:last]
    return LayerView(
        keys=keys[first:last],
        values=lambda: held,
        positions=torch.arange(rows).expand(last - first, rows),
        media=labels.expand(last - first, rows),
        items=tuple((labels == item).nonzero().squeeze(1) for item in range(media) if (labels == item).any()),
        layer=1,
        gamma=0.3,
        window=window,
        scale=DIM**-0.5,
        queries=queries[:, first:last].reshape(window, -1, DIM),
        saliency=saliency.expand(last - first, rows),
        normed_saliency=normed.expand(last - first, rows),
        rotation=torch.cat([angles.cos(), angles.sin()], dim=1),
        coordinates=coordinates,
        exited=torch.tensor(seed % 2 == 1),
        head_offset=first,
        seed=seed,
    )


def _coordinates(labels: torch.Tensor) -> torch.Tensor:
    """M-RoPE positions, [3, rows]; screenshots are two visual tokens wide, and their last row may be half full."""
    found = torch.zeros(3, len(labels), dtype=torch.int64)
    row = at = 0
    while row < len(labels):
        item = int(labels[row])
        size = 1 if item == TEXT else int((labels == item).sum())
        for inside in range(size):
            deep, across = (0, 0) if item == TEXT else divmod(inside, 2)
            found[:, row + inside] = torch.tensor([at, at + deep, at + across])
        at += 1 if item == TEXT else max(2, (size + 1) // 2)
        row += size
    return found


def advance(before: LayerView, kept: torch.Tensor, scores: Scores, decoded: int) -> LayerView:
    """The view after a compaction and `decoded` more tokens."""
    heads, dim = before.keys.shape[0], before.keys.shape[2]
    source = torch.Generator().manual_seed(before.seed + 1)
    take = kept[:, :, None].expand(-1, -1, dim)
    fresh = torch.randn(2, heads, decoded, dim, generator=source)
    values = torch.cat([before.values().gather(1, take), fresh[1]], dim=1)
    since = torch.arange(before.rows, before.rows + decoded).expand(heads, decoded)
    text = torch.full((heads, decoded), TEXT)
    return replace(
        before,
        keys=torch.cat([before.keys.gather(1, take), fresh[0]], dim=1),
        values=lambda: values,
        positions=torch.cat([before.positions.gather(1, kept), since], dim=1),
        media=torch.cat([before.media.gather(1, kept), text], dim=1),
        items=(),
        saliency=None,
        normed_saliency=None,
        coordinates=None,
        carried={
            name: torch.nn.functional.pad(found.gather(1, kept), (0, decoded)) for name, found in scores.carry.items()
        },
        first=False,
    )
