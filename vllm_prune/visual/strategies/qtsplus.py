"""Cells that any word of the question attends to most, encoded anew among themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import gelu

from ...grid import Grid
from ._text import text_of
from ._trained import LanguageShape, Network, Shapes, TrainedStrategy
from .base import Context, NoOptions, Reduction
from .maths import quantise

_EPS = 1e-6
"""In the authors' layers, whatever the language model has."""


class QtsPlusOptions(NoOptions):
    """Options of `qtsplus`.

    Attributes:
        reencode: whether the kept visual tokens go through the trained layers that follow the choice, as the authors'
            language model expects it; without, they stay as the tower made them.
    """

    reencode: bool = True


class QtsPlus(TrainedStrategy):
    """QTSplus (arXiv 2511.11910, section 3): a cross-attention layer scores, layers of self-attention encode anew.

    A visual token's score is the largest share of attention that any head of any of the text's tokens gives it. The K
    highest are kept, ties go to the lower index, and attend to each other in the layers that follow. The authors' head
    that chooses K is not asked, as K is the budget's. Text is that of the last user message, and kept tokens stand at
    their positions in the picture, where the authors number them one after the other. The layers are by the authors'
    public code; their weights have not been run here.
    """

    name = "qtsplus"
    paper = "QTSplus, arXiv 2511.11910, section 3"
    summary = "visual tokens that a word of the question attends to in a trained layer, encoded anew by another one"
    needs = frozenset({"text", "weights"})
    floor = False
    rewrites = True
    Options = QtsPlusOptions
    options: QtsPlusOptions
    anchor = "scoring_layers.0.q_proj.weight"
    source = "AlpachinoNLP/QTSplus-3B and QTSplus-7B, for Qwen2.5-VL"

    @classmethod
    def layout(cls, shapes: Shapes, language: LanguageShape) -> dict[str, tuple[int, ...]]:
        """See `TrainedStrategy.layout`; how many layers there are, and how wide their MLPs, is open."""
        expected: dict[str, tuple[int, ...]] = {}
        for name in _layers(shapes):
            hidden = shapes.get(f"{name}ffn.net.0.bias", (0,))[0]
            expected |= language.attention(name)
            expected |= {f"{name}{norm}.weight": (language.width,) for norm in ("q_norm", "kv_norm", "ffn_norm")}
            expected |= {f"{name}ffn.net.0.weight": (hidden, language.width), f"{name}ffn.net.0.bias": (hidden,)}
            expected |= {
                f"{name}ffn.net.2.weight": (language.width, hidden),
                f"{name}ffn.net.2.bias": (language.width,),
            }
        return expected

    def score(self, tokens: Tensor, grid: Grid, context: Context) -> Tensor:
        """Largest share of attention, times M; see `Strategy.score`.

        Raises:
            ValueError: the model adapter gave no text or no weights.
        """
        network, cells = self.network(context), tokens.float()
        rows = text_of(self.name, tokens, context)
        *before, last = (name for name in _layers(network.tensors) if name.startswith("scoring"))
        for name in before:
            rows = _layer(network, name, rows, cells)
        queries = network.queries(network.norm(rows, f"{last}q_norm", _EPS), last)
        keys = network.keys(network.norm(cells, f"{last}kv_norm", _EPS), last)
        # One head after the other, as the shares of all would be the largest tensor of the encoder.
        groups = network.language.heads // network.language.kv_heads
        score = cells.new_zeros(len(cells))
        for head, query in enumerate(queries):
            shares = (query @ keys[head // groups].T * network.language.head**-0.5).softmax(-1)
            score = score.maximum(shares.amax(0))
        return quantise(score * len(cells))

    def reduce(
        self, tokens: Tensor, grid: Grid, count: int, context: Context, per_frame: Sequence[int] | None = None
    ) -> Reduction:
        """See `Strategy.reduce`."""
        kept = self.select(tokens, grid, count, context, per_frame)
        network = self.network(context)
        layers = [name for name in _layers(network.tensors) if name.startswith("reencode")]
        if count == grid.tokens or not layers or not self.options.reencode:
            return Reduction(kept)

        def encoded(rows: Tensor) -> Tensor:
            # Columns behind the features (of earlier tower layers, in Qwen3-VL) stay as they are.
            left = rows[kept].float()
            features, others = left[:, : tokens.shape[1]], left[:, tokens.shape[1] :]
            for name in layers:
                features = _layer(network, name, features, features)
            return torch.cat([features, others], dim=1)

        return Reduction(kept, encoded)


def _layers(names: Shapes | dict[str, Tensor]) -> list[str]:
    """Prefixes of the layers, those that score first, each kind in order."""
    layers = []
    for kind, module in (("scoring_layers.", ""), ("reencode_layers.", "core.")):
        numbers = {name.removeprefix(kind).partition(".")[0] for name in names if name.startswith(kind)}
        layers += [f"{kind}{number}.{module}" for number in sorted(map(int, numbers))]
    return layers


def _layer(network: Network, name: str, rows: Tensor, memory: Tensor) -> Tensor:
    """A pre-norm layer in which `rows` attend to `memory`; float32 [n, D]."""
    queries = network.queries(network.norm(rows, f"{name}q_norm", _EPS), name)
    seen = network.norm(memory, f"{name}kv_norm", _EPS)
    rows = rows + network.attend(queries, network.keys(seen, name), seen, name)
    inner = gelu(network.map(network.norm(rows, f"{name}ffn_norm", _EPS), f"{name}ffn.net.0"))
    return rows + network.map(inner, f"{name}ffn.net.2")
