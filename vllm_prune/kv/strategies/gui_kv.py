"""GUI-KV: window attention, spatial saliency of the current screenshot, temporal redundancy of earlier ones."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...signals import KvSignal
from ._highest import highest
from ._pooling import Kernel, average_pool
from ._probe import WindowOptions, probe_weights
from ._screens import REDUNDANT, NormSource, redundant_count, saliency_boost, signal_of
from .base import TEXT, KvStrategy, LayerView, Scores, summed_attention

PROTECTED = 1e3


class GuiKvOptions(WindowOptions):
    """Options of GUI-KV.

    Attributes:
        alpha: weight of the spatial saliency.
        tau: temperature of its softmax.
        pooling: kernel of the average pooling of attention, odd.
        rank: columns of the current screenshot's key basis, less than the model's head size; by default a quarter of
            it and at most 32, which is the paper's 32 of 128.
        selection: choose rows for each KV head, or the same rows for all heads of a layer.
        basis: the screenshot's first tokens (the paper's), evenly spread tokens, or the main directions of all.
        norm_source: which norms are salient: of hidden states behind the layer's input norm (the authors' code), of
            hidden states in front of it (the paper's text), or of the values in the cache.
        redundant_share: share of the paper's count of redundant tokens that is ranked last; 0 looks for none.
        protect: whether text is kept before anything visual.
    """

    alpha: Annotated[float, Field(ge=0)] = 2.0
    tau: Annotated[float, Field(gt=0)] = 3.5
    pooling: Kernel = 5
    rank: Annotated[int, Field(ge=1, le=256)] | None = None
    selection: Literal["per_kv_head", "per_layer"] = "per_kv_head"
    basis: Literal["lead", "stride", "gram"] = "lead"
    norm_source: NormSource = "normed"
    redundant_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    protect: Literal["none", "text"] = "none"


class GuiKv(KvStrategy):
    """The paper's score per KV head, the mean over the head's query group."""

    name = "gui_kv"
    paper = "GUI-KV, arXiv 2510.00536, section 3"
    summary = (
        "what the last tokens attend to, salient visual tokens of the current screenshot, no repeats of earlier ones"
    )
    needs = frozenset({"queries", "saliency", "values"})
    Options = GuiKvOptions
    options: GuiKvOptions

    def wanted(self) -> frozenset[KvSignal]:
        """Only the norms that the options name."""
        return frozenset({"queries", signal_of(self.options.norm_source)})

    def by_head(self) -> bool:
        """Unless a layer's heads choose alike."""
        return self.options.selection == "per_kv_head"

    def waits_for_device(self) -> bool:
        """An eigendecomposition reads on the host whether it has converged; PyTorch has none that does not."""
        return self.options.basis == "gram"

    def unfit(self, head_size: int) -> str | None:
        """A basis of as many columns as a key has values spans every key: what is left of each is rounding noise."""
        if self.options.rank is None or self.options.rank < head_size:
            return None
        return f"rank {self.options.rank} spans every key of heads of size {head_size}; give less, or leave it out"

    def score(self, view: LayerView) -> Scores:
        """Attention is scored anew at every compaction; saliency and redundancy are the prompt's."""
        free = view.rows - view.window
        attention = summed_attention(view, probe_weights(view, self.options)).mean(dim=1)
        attention[:, :free] = average_pool(attention[:, :free], self.options.pooling)
        if view.first:
            options = self.options
            boost = saliency_boost(view, options.alpha, options.tau, options.norm_source)
            redundant = self._redundant(view)
        elif view.carried:
            boost, redundant = view.carried["boost"], view.carried["redundant"]
        else:
            boost = redundant = torch.zeros_like(view.keys[..., 0])
        scores = attention + boost
        if self.options.selection == "per_layer":
            scores = scores.mean(dim=0, keepdim=True).expand_as(scores).clone()
            redundant_rows = redundant.mean(dim=0, keepdim=True).expand_as(scores) > 0.5
        else:
            redundant_rows = redundant > 0
        scores = scores.masked_fill(redundant_rows, REDUNDANT)
        if self.options.protect == "text":
            scores = scores + PROTECTED * (view.media == TEXT)
        # A prompt without media has neither, and rows that carry nothing take no memory for it.
        return Scores(scores, {"boost": boost, "redundant": redundant} if view.items or view.carried else {})

    def _redundant(self, view: LayerView) -> Tensor:
        """1 for the rows of earlier screenshots that lie closest to the current one's key subspace, [H, L]."""
        flags = torch.zeros_like(view.keys[..., 0])
        if len(view.items) < 2:
            return flags
        *before, current = view.items
        earlier = torch.cat(before)
        count = redundant_count(view, len(earlier), self.options.redundant_share)
        if count == 0:
            return flags
        # What is left of a key outside the subspace is computed as such: a difference of squares would lose it to
        # rounding. Over all rows, as picking the earlier ones first would copy them.
        rest = torch.linalg.vector_norm(view.keys @ self._complement(view.keys, current), dim=-1)
        closest = highest(-rest[:, earlier], count)
        return flags.scatter_(1, earlier[closest], 1.0)

    def _complement(self, keys: Tensor, current: Tensor) -> Tensor:
        """Orthonormal basis of what is orthogonal to the current screenshot's keys.

        Args:
            keys: float32 [H, L, D].
            current: int64 [n], rows of the screenshot.

        Returns:
            float32 [H, D, D - r], from float64.
        """
        size = keys.shape[2]
        rank = max(1, min(32, size // 4)) if self.options.rank is None else self.options.rank
        rank = min(rank, len(current), size - 1)
        if self.options.basis == "gram":
            keys = keys[:, current].double()
            return torch.linalg.eigh(keys.transpose(1, 2) @ keys).eigenvectors[:, :, :-rank].float()
        if self.options.basis == "stride":
            chosen = current[torch.arange(rank, device=keys.device) * len(current) // rank]
        else:
            # The first r columns of an unpivoted QR depend on the first r columns alone.
            chosen = current[:rank]
        # All columns of Q: those behind the first r are orthogonal to the chosen keys.
        return torch.linalg.qr(keys[:, chosen].double().transpose(1, 2), mode="complete").Q[:, :, rank:].float()
