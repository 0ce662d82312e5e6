"""Expected attention: what queries to come will attend to, were they like those of the prompt, or of the window."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...signals import KvSignal
from ._probe import WindowOptions, probe_weights
from .base import PART, KvStrategy, LayerView, Scores


class ExpectedAttentionOptions(WindowOptions):
    """Options of `expected_attention`.

    Attributes:
        queries: whose mean and covariance queries to come have. "prompt" takes all of the prompt before rotary
            embedding, as the paper does; it needs `kv.prompt_queries` of the configuration, and computes the prompt
            whatever the prefix cache has of it. "window" takes the last ones.
        horizon: positions ahead over which queries are expected.
        sinks: first tokens of the prompt that are always kept, and whose queries "prompt" leaves out.
        use_values: whether a row's expected attention is weighed by the norm of its value.
    """

    queries: Literal["window", "prompt"] = "window"
    horizon: Annotated[int, Field(ge=1, le=8192)] = 512
    sinks: Annotated[int, Field(ge=0, le=1024)] = 4
    use_values: bool = True


class ExpectedAttention(KvStrategy):
    """Queries to come are taken as Gaussian, with the mean and covariance of the prompt's or of the window's queries.

    Of a window of 8 queries about half of the rows are chosen that the whole prompt's would choose. A wider `window`
    brings the two together. At later compactions the prompt's queries still stand for those to come.
    """

    name = "expected_attention"
    paper = "Expected Attention, arXiv 2510.00636, section 3, with `queries: prompt`; by default the window's"
    summary = "what queries like those of the window, or of the whole prompt, would attend to over the next positions"
    needs = frozenset({"queries", "rotation", "values", "coordinates", "moments"})
    Options = ExpectedAttentionOptions
    options: ExpectedAttentionOptions

    def wanted(self) -> frozenset[KvSignal]:
        """What holds the queries that the options name."""
        if self.options.queries == "prompt":
            return frozenset({"rotation", "values", "moments", "coordinates"})
        return frozenset({"rotation", "values", "queries"})

    @property
    def first_query(self) -> int:
        """Sinks draw attention whatever is asked, and ask for nothing themselves."""
        return self.options.sinks

    def score(self, view: LayerView) -> Scores:
        """Softmax over rows of the expected exponentiated logit, times the value's norm, mean over the group."""
        table, carry = view.rotation, dict[str, Tensor]()
        assert table is not None
        if self.options.queries == "prompt":
            ahead = _ahead(view)
            carry["ahead"] = ahead.expand_as(view.positions)
            mean, covariance = _of_prompt(view)
            # Positions beyond the table are those of no request that the model takes.
            start = (view.positions[0, -1] + 1 + ahead.flatten()).long()
            steps = start + torch.arange(self.options.horizon, device=table.device)
            angles = table[steps.clamp(0, len(table) - 1)]
        else:
            mean, covariance = self._of_window(view, table)
            angles = table[1 : min(self.options.horizon, len(table) - 1) + 1]
        turn = _turn(torch.eye(table.shape[1], device=table.device), angles.mean(dim=0)).T
        rows = self._scored(view, mean @ turn.T, turn @ covariance @ turn.T)
        return Scores(rows.masked_fill(view.positions < self.options.sinks, torch.finfo(rows.dtype).max), carry)

    def _scored(self, view: LayerView, mean: Tensor, covariance: Tensor) -> Tensor:
        # [H, G, step, D] is held at once.
        step = max(1, PART // mean.numel())
        parts = (_log_expected(keys[:, None], mean, covariance, view.scale) for keys in view.keys.split(step, dim=1))
        expected = torch.cat(list(parts), dim=-1).softmax(dim=-1)
        if self.options.use_values:
            expected = expected * view.values().norm(dim=-1)[:, None]
        return expected.mean(dim=1)

    def _of_window(self, view: LayerView, table: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [H, G, D] and covariance [H, G, D, D] of the window's queries, turned to where its last one stands."""
        queries = view.queries
        assert queries is not None
        window, heads, dim = len(queries), len(view.keys), queries.shape[-1]
        # Rotations compose: turning a query by the steps to the last token puts the whole window at one position.
        steps = torch.arange(window - 1, -1, -1, device=table.device).clamp(max=len(table) - 1)
        placed = _turn(queries, table[steps][:, None]).view(window, heads, -1, dim).permute(1, 2, 0, 3)
        weights = probe_weights(view, self.options)
        shares = (torch.ones_like(placed[..., 0]) if weights is None else weights) / window
        mean = (shares[..., None] * placed).sum(dim=2)
        offset = placed - mean[:, :, None]
        return mean, offset.transpose(-1, -2) @ (shares[..., None] * offset)


def _of_prompt(view: LayerView) -> tuple[Tensor, Tensor]:
    """Mean [H, G, D] and covariance [H, G, D, D] of the prompt's queries before rotary embedding."""
    assert view.moments is not None
    heads, dim = len(view.keys), view.keys.shape[2]
    return view.moments.mean.view(heads, -1, dim), view.moments.covariance.view(heads, -1, dim, dim)


def _ahead(view: LayerView) -> Tensor:
    """By how much the position that text is rotated by is ahead of its place in the request, float32 [1, 1].

    With M-RoPE a picture takes fewer positions than it has visual tokens; what follows the prompt goes on from there.
    """
    if not view.first:
        return view.carried["ahead"][:1, :1]
    if view.coordinates is None:
        return torch.zeros_like(view.keys[:1, :1, 0])
    return (view.coordinates[0, -1] - view.positions[0, -1]).float().view(1, 1)


def _log_expected(keys: Tensor, mean: Tensor, covariance: Tensor, scale: float) -> Tensor:
    """Logarithm of the mean of exp(q k scale) over Gaussian queries q: [H, G, n] for [H, 1, n, D] keys."""
    linear = (keys @ mean[..., None]).squeeze(-1) * scale
    return linear + ((keys @ covariance) * keys).sum(dim=-1) * scale**2 / 2


def _turn(rows: Tensor, angles: Tensor) -> Tensor:
    """Rotate [..., D] rows by [..., D] angles given as cosines and then sines, halves against halves."""
    cosine, sine = angles.chunk(2, dim=-1)
    left, right = rows.chunk(2, dim=-1)
    return torch.cat([left * cosine - right * sine, right * cosine + left * sine], dim=-1)
