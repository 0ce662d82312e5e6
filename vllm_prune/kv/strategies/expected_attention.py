"""Expected attention: what queries to come will attend to, were they like those of the window."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ._probe import WindowOptions, probe_weights
from .base import PART, KvStrategy, LayerView, Scores


class ExpectedAttentionOptions(WindowOptions):
    """Options of `expected_attention`.

    Attributes:
        horizon: positions ahead over which queries are expected.
        sinks: first tokens of the prompt that are always kept.
        use_values: whether a row's expected attention is weighed by the norm of its value.
    """

    horizon: Annotated[int, Field(ge=1, le=8192)] = 512
    sinks: Annotated[int, Field(ge=0, le=1024)] = 4
    use_values: bool = True


class ExpectedAttention(KvStrategy):
    """Queries to come are taken as Gaussian, with the mean and covariance of the window's queries.

    The paper takes those of the whole prompt, which are not kept here: of 8 queries about half of the rows are chosen
    that the whole prompt's would choose. A wider `window` brings the two together.
    """

    name = "expected_attention"
    paper = "after Expected Attention, arXiv 2510.00636, section 3: from the window's queries, not the whole prompt's"
    summary = "what queries like those of the window would attend to over the next positions"
    needs = frozenset({"queries", "rotation", "values"})
    Options = ExpectedAttentionOptions
    options: ExpectedAttentionOptions

    def score(self, view: LayerView) -> Scores:
        """Softmax over rows of the expected exponentiated logit, times the value's norm, mean over the group."""
        mean, covariance = self._future(view)
        # [H, G, step, D] is held at once.
        step = max(1, PART // mean.numel())
        parts = (_log_expected(keys[:, None], mean, covariance, view.scale) for keys in view.keys.split(step, dim=1))
        expected = torch.cat(list(parts), dim=-1).softmax(dim=-1)
        if self.options.use_values:
            expected = expected * view.values().norm(dim=-1)[:, None]
        rows = expected.mean(dim=1)
        return Scores(rows.masked_fill(view.positions < self.options.sinks, torch.finfo(rows.dtype).max))

    def _future(self, view: LayerView) -> tuple[Tensor, Tensor]:
        """Mean [H, G, D] and covariance [H, G, D, D] of queries at the average of the next positions."""
        queries, table = view.queries, view.rotation
        assert queries is not None
        assert table is not None
        window, heads, dim = len(queries), len(view.keys), queries.shape[-1]
        # Rotations compose: turning a query by the steps to the last token puts the whole window at one position.
        steps = torch.arange(window - 1, -1, -1, device=table.device).clamp(max=len(table) - 1)
        placed = _turn(queries, table[steps][:, None]).view(window, heads, -1, dim).permute(1, 2, 0, 3)
        weights = probe_weights(view, self.options)
        shares = (torch.ones_like(placed[..., 0]) if weights is None else weights) / window
        mean = (shares[..., None] * placed).sum(dim=2)
        offset = placed - mean[:, :, None]
        covariance = offset.transpose(-1, -2) @ (shares[..., None] * offset)
        ahead = table[1 : min(self.options.horizon, len(table) - 1) + 1].mean(dim=0)
        turn = _turn(torch.eye(dim, device=table.device), ahead).T
        return mean @ turn.T, turn @ covariance @ turn.T


def _log_expected(keys: Tensor, mean: Tensor, covariance: Tensor, scale: float) -> Tensor:
    """Logarithm of the mean of exp(q k scale) over Gaussian queries q: [H, G, n] for [H, 1, n, D] keys."""
    linear = (keys @ mean[..., None]).squeeze(-1) * scale
    return linear + ((keys @ covariance) * keys).sum(dim=-1) * scale**2 / 2


def _turn(rows: Tensor, angles: Tensor) -> Tensor:
    """Rotate [..., D] rows by [..., D] angles given as cosines and then sines, halves against halves."""
    cosine, sine = angles.chunk(2, dim=-1)
    left, right = rows.chunk(2, dim=-1)
    return torch.cat([left * cosine - right * sine, right * cosine + left * sine], dim=-1)
