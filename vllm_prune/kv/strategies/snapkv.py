"""SnapKV: what the last tokens attend to, pooled over neighbours."""

from __future__ import annotations

from typing import Literal

from ._pooling import Kernel, average_pool, max_pool
from ._probe import WindowOptions, probe_weights
from .base import KvStrategy, LayerView, Scores, summed_attention


class SnapKvOptions(WindowOptions):
    """Options of `snapkv`.

    Attributes:
        pooling: kernel of the pooling of attention over neighbouring rows, odd.
        mode: average or maximum.
    """

    pooling: Kernel = 5
    mode: Literal["avg", "max"] = "avg"


class SnapKv(KvStrategy):
    """Mean attention of the window and of the head's query group."""

    name = "snapkv"
    paper = "SnapKV, arXiv 2404.14469, section 4"
    summary = "what the last tokens attend to, with its neighbours"
    needs = frozenset({"queries"})
    Options = SnapKvOptions
    options: SnapKvOptions

    def by_head(self) -> bool:
        """Always."""
        return True

    def score(self, view: LayerView) -> Scores:
        """Pooled window attention; the window itself takes no part in the pooling."""
        attention = summed_attention(view, probe_weights(view, self.options)).mean(dim=1) / view.window
        free = view.rows - view.window
        pool = average_pool if self.options.mode == "avg" else max_pool
        attention[:, :free] = pool(attention[:, :free], self.options.pooling)
        return Scores(attention)
