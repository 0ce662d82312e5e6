"""What the authors' code keeps of a cache, called as their attention layers call it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from vllm_prune.catalogue import KV
from vllm_prune.kv.strategies.base import TEXT, LayerView

from .visual import Namespace

KINDS = ("clusters", "planted", "repeats")
WINDOW, SIDE, DIM, HEADS, TEXT_ROWS = 8, 12, 128, 2, 6


@dataclass(frozen=True)
class KvCase:
    """A layer's cache of a prompt with square screenshots, text before and behind each, and how much of it to keep.

    Attributes:
        kind: one of `KINDS`.
        keys: [H, L, D] float32.
        queries: [H * G, L, D] float32.
        hidden: [L, D] float32, behind the layer's input norm.
        spans: rows of each screenshot.
        keep: share of L.
    """

    kind: str
    keys: Tensor
    queries: Tensor
    hidden: Tensor
    spans: tuple[range, ...]
    keep: float

    @property
    def rows(self) -> int:
        """L."""
        return self.keys.shape[1]

    @property
    def count(self) -> int:
        """C."""
        return int(self.rows * self.keep)

    @property
    def group(self) -> int:
        """G."""
        return len(self.queries) // len(self.keys)

    def view(self) -> LayerView:
        """The same as ours see it."""
        media = torch.full((self.rows,), TEXT)
        places = torch.arange(self.rows).repeat(3, 1)
        for number, span in enumerate(self.spans):
            inside = torch.arange(len(span))
            media[span.start : span.stop] = number
            places[:, span.start : span.stop] = span.start
            places[1, span.start : span.stop] += inside // SIDE
            places[2, span.start : span.stop] += inside % SIDE
        heads = len(self.keys)
        return LayerView(
            keys=self.keys,
            values=lambda: self.keys,
            positions=torch.arange(self.rows).expand(heads, -1),
            media=media.expand(heads, -1),
            items=tuple(torch.arange(span.start, span.stop) for span in self.spans),
            layer=0,
            gamma=self.count / self.rows,
            window=WINDOW,
            scale=DIM**-0.5,
            queries=self.queries[:, -WINDOW:].transpose(0, 1),
            normed_saliency=self.hidden.norm(dim=1).expand(heads, -1),
            coordinates=places,
        )

    def theirs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, queries and values with a batch in front; keys and values per query head, values say which row."""
        keys = self.keys.repeat_interleave(self.group, 0)
        rows = torch.arange(self.rows).float()[None, :, None].expand_as(keys)
        return keys[None], self.queries[None], rows[None]


def kv_cases(screens: Sequence[int], keeps: Sequence[float], group: int, seeds: int) -> Iterator[KvCase]:
    """Every kind of content with each number of screenshots, drawn `seeds` times."""
    for shown in screens:
        spans = tuple(
            range(TEXT_ROWS + n * (SIDE**2 + TEXT_ROWS), (n + 1) * (SIDE**2 + TEXT_ROWS)) for n in range(shown)
        )
        rows = (shown + 1) * TEXT_ROWS + shown * SIDE**2 + WINDOW
        for number, kind in enumerate(KINDS):
            for seed in range(seeds):
                source = torch.Generator().manual_seed(1000 * number + seed)
                keys, queries, hidden = _content(kind, rows, spans, group, source)
                yield from (KvCase(kind, keys, queries, hidden, spans, keep) for keep in keeps)


def _content(
    kind: str, rows: int, spans: tuple[range, ...], group: int, source: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    keys = torch.randn(HEADS, rows, DIM, generator=source)
    queries = torch.randn(HEADS * group, rows, DIM, generator=source)
    hidden = torch.randn(rows, DIM, generator=source) * (1 + 0.2 * torch.rand(rows, 1, generator=source))
    if kind == "clusters":
        centers = torch.randn(HEADS, 12, DIM, generator=source)
        keys = 0.5 * keys + centers[:, torch.randint(12, (rows,), generator=source)]
    if kind == "planted":
        wanted = (torch.rand(rows, generator=source) < 0.1).float()[:, None]
        asked = queries[:, -WINDOW:].mean(1).view(HEADS, group, DIM).mean(1)
        keys = keys + 2 * wanted * asked[:, None]
        hidden = hidden * (1 + wanted)
    if kind == "repeats":
        for span in spans[1:]:
            first = spans[0]
            changed = (torch.rand(len(span), 1, generator=source) < 0.3).float()
            noise = torch.randn(HEADS, len(span), DIM, generator=source)
            keys[:, span.start : span.stop] = keys[:, first.start : first.stop] + (0.05 + 0.6 * changed) * noise
            hidden[span.start : span.stop] = hidden[first.start : first.stop] + 0.05 * noise[0]
    return keys, queries, hidden


def ours(name: str, case: KvCase) -> Tensor:
    """Rows in front of the window that the strategy keeps, each head's after those of the one before, int64."""
    kept = KV.create(name).select(case.view(), case.count)[0][:, :-WINDOW]
    return _numbered(kept, case)


def _numbered(kept: Tensor, case: KvCase) -> Tensor:
    return (kept.long() + torch.arange(len(kept))[:, None] * case.rows).flatten()


def _by_values(values: Tensor, case: KvCase) -> Tensor:
    """The kept rows in front of the window, from what is left of the values; of a group the first query head's."""
    return _numbered(values[0, :: values.shape[1] // len(case.keys), :-WINDOW, 0], case)


def snapkv(code: Namespace, case: KvCase) -> Tensor:
    """One query head per KV head, as they choose per query head."""
    cluster = code["SnapKVCluster"](WINDOW, case.count, 5, "avgpool")
    keys, queries, values = case.theirs()
    return _by_values(cluster.update_kv(keys, queries, values, None, 1)[1], case)


def gui_kv(code: Namespace, case: KvCase) -> Tensor:
    """As `snapkv`; alpha and temperature are those of their scripts."""
    cluster = code["GUIKVCluster"](
        WINDOW, case.count, 5, "avgpool", alpha=2, temperature=3.5,
        vision_start_idx=[span.start for span in case.spans], vision_end_idx=[span.stop for span in case.spans],
    )  # fmt: skip
    keys, queries, values = case.theirs()
    return _by_values(cluster.update_kv(keys, queries, values, None, 1, case.hidden[None])[1], case)


def r_kv(code: Namespace, case: KvCase) -> Tensor:
    """Keys per KV head, and the window's queries."""
    cluster = code["R1KV"](budget=case.count, window_size=WINDOW, kernel_size=7, mix_lambda=0.07)
    rows = torch.arange(case.rows).float()[None, :, None].expand_as(case.keys)
    return _by_values(cluster.update_kv(case.keys[None], case.queries[None, :, -WINDOW:], rows[None])[1], case)


def star_kv(code: Namespace, case: KvCase) -> Tensor:
    """The same prompt twice, so that their profile over requests is this one's; settings are those of their scripts."""
    config = SimpleNamespace(alpha=2.0, temperature=3.5)
    parent = SimpleNamespace(
        config=config, vision_start_idx=[span.start for span in case.spans],
        vision_end_idx=[span.stop for span in case.spans], kv_group_soft_prior_lambda=0.5,
        kv_group_online_profile_steps=1, kv_group_online_profile_lambda_ramp_steps=1,
        kv_group_online_profile_decay=0.9, kv_group_online_profile_tau=1.0, kv_group_temporal_enable=True,
        kv_group_temporal_delta=0.1, kv_group_temporal_rho=0.9, kv_entropy_budget_enable=True,
        kv_entropy_budget_min_scale=0.75, kv_entropy_budget_max_scale=1.25,
    )  # fmt: skip
    cluster = code["STARKVGroupCluster"](WINDOW, case.count, 5, "avgpool")
    cluster.attn_parent = parent
    keys, queries, values = case.theirs()
    for _ in range(2):
        kept = cluster.update_kv(keys, queries, values, None, case.group, case.hidden[None])[1]
    return _by_values(kept, case)
