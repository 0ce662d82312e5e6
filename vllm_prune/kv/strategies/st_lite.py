"""ST-Lite: salient neighbourhoods of the current screenshot, and a gate for what it shows again of earlier ones."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from ...signals import KvSignal
from ._pooling import Kernel, average_pool
from ._probe import WindowOptions, probe_weights
from ._screens import REDUNDANT, NormSource, redundant_count, saliency_boost, signal_of
from .base import KvStrategy, LayerView, Scores, summed_attention

PART = 1 << 22
"""Most cosines that are held at once."""


class StLiteOptions(WindowOptions):
    """Options of `st_lite`.

    Attributes:
        alpha: weight of the spatial saliency.
        pooling: kernel of the average pooling of attention over neighbouring rows, odd.
        norm_source: which norms are salient, see `gui_kv`.
        redundant_share: share of the authors' count of repeated tokens that is ranked last; 0 looks for none.
    """

    alpha: Annotated[float, Field(ge=0)] = 1.0
    pooling: Kernel = 5
    norm_source: NormSource = "normed"
    redundant_share: Annotated[float, Field(ge=0, le=1)] = 1.0


class StLite(KvStrategy):
    """The score of the authors' code per KV head, the mean over the head's query group.

    - Component-centric spatial saliency: the norm of a visual token of the current screenshot plus the mean norm of the
      3 x 3 cells around it, standardised, through a softmax. The authors' code smooths square screenshots only, here
      every grid that coordinates give is smoothed.
    - Trajectory-aware semantic gating: of all visual tokens of earlier screenshots, the share that the budget takes
      away goes last, those first that are most like one of the current screenshot. The authors compare hidden states;
      those are not kept when serving, so the values in the cache, a linear map of them, stand for them.
    """

    name = "st_lite"
    paper = "ST-Lite, arXiv 2603.00188, by the formulas of the authors' code; values compared for hidden states"
    summary = "attended rows, salient neighbourhoods of the current screenshot; what it repeats of earlier ones last"
    needs = frozenset({"queries", "saliency", "values", "coordinates"})
    Options = StLiteOptions
    options: StLiteOptions

    def wanted(self) -> frozenset[KvSignal]:
        """Values beside the norms that the options name."""
        return frozenset({"queries", "values", "coordinates", signal_of(self.options.norm_source)})

    def score(self, view: LayerView) -> Scores:
        """Attention is scored anew at every compaction; saliency and repeats are the prompt's."""
        options, free = self.options, view.rows - view.window
        scores = summed_attention(view, probe_weights(view, options)).mean(dim=1)
        scores[:, :free] = average_pool(scores[:, :free], options.pooling)
        if view.first:
            boost = saliency_boost(view, options.alpha, 1.0, options.norm_source, around=True)
            repeated = self._repeated(view)
        else:
            boost, repeated = view.carried["boost"], view.carried["repeated"]
        return Scores((scores + boost).masked_fill(repeated > 0, REDUNDANT), {"boost": boost, "repeated": repeated})

    def _repeated(self, view: LayerView) -> Tensor:
        """1 for the rows of earlier screenshots whose values are most like one of the current screenshot's, [H, L]."""
        flags = torch.zeros_like(view.keys[..., 0])
        if len(view.items) < 2:
            return flags
        *before, current = view.items
        earlier = torch.cat(before)
        count = redundant_count(view, len(earlier), self.options.redundant_share)
        if count == 0:
            return flags
        values = view.values()
        shown = normalize(values[:, current], dim=-1).transpose(1, 2)
        step = max(1, PART // (len(flags) * len(current)))
        likeness = [(normalize(values[:, part], dim=-1) @ shown).amax(dim=2) for part in earlier.split(step)]
        closest = torch.cat(likeness, dim=1).argsort(dim=1, descending=True, stable=True)[:, :count]
        return flags.scatter_(1, earlier[closest], 1.0)
