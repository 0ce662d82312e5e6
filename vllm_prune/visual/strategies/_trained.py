"""The base classes of strategies that run layers which others have trained, and these layers.

Weights keep the dtype of their file; everything is computed in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from ._signals import required
from .base import Context, Strategy

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by their names."""


class LayoutError(ValueError):
    """Tensors that are not those of a strategy; the message says which one and what was expected."""


@dataclass(frozen=True)
class LanguageShape:
    """Sizes of the served language model, which trained layers share, and of what it reads.

    Attributes:
        width: hidden size, D.
        heads, kv_heads: attention heads of queries, and of keys and values.
        theta: base of the rotary embedding.
        eps: added to the mean square in its norms.
        frame_patches: patches of a frame, where the vision tower draws all frames at one size; else 0.
        layers: number of its layers; 0 where its configuration does not say.
    """

    width: int
    heads: int
    kv_heads: int
    theta: float = 10000.0
    eps: float = 1e-6
    frame_patches: int = 0
    layers: int = 0

    @property
    def words(self) -> str:
        """The sizes that layers share, for people."""
        return f"of width {self.width} with {self.heads} heads, {self.kv_heads} of them for keys"

    @property
    def head(self) -> int:
        """Size of a head."""
        return self.width // self.heads

    def attention(self, name: str) -> dict[str, tuple[int, ...]]:
        """Tensors of an attention module as Qwen2 has it: biases on all but the last map."""
        keys = self.kv_heads * self.head
        shapes: dict[str, tuple[int, ...]] = {f"{name}q_proj.weight": (self.width, self.width)}
        shapes |= {f"{name}{part}_proj.weight": (keys, self.width) for part in "kv"}
        shapes |= {f"{name}{part}_proj.bias": (keys,) for part in "kv"}
        return shapes | {f"{name}q_proj.bias": (self.width,), f"{name}o_proj.weight": (self.width, self.width)}


class Network:
    """Trained tensors, and the layers that they are of.

    Args:
        tensors: by name, any float dtype.
        language: see `LanguageShape`.
    """

    def __init__(self, tensors: Mapping[str, Tensor], language: LanguageShape) -> None:
        self.tensors, self.language = dict(tensors), language

    def to(self, device: torch.device) -> Network:
        """The same on a device."""
        return Network({name: tensor.to(device) for name, tensor in self.tensors.items()}, self.language)

    def map(self, rows: Tensor, name: str) -> Tensor:
        """The linear map of this name, with its bias where it has one; float32 [..., D] to [..., H]."""
        bias = self.tensors.get(f"{name}.bias")
        return linear(rows, self.tensors[f"{name}.weight"].float(), None if bias is None else bias.float())

    def norm(self, rows: Tensor, name: str, eps: float) -> Tensor:
        """Rows over their root mean square, times the weights of this name; float32 [n, D]."""
        return self.tensors[f"{name}.weight"].float() * rows * (rows.square().mean(-1, keepdim=True) + eps).rsqrt()

    def queries(self, rows: Tensor, name: str) -> Tensor:
        """Queries of an attention module, float32 [heads, n, d]."""
        return self._heads(self.map(rows, f"{name}q_proj"), self.language.heads)

    def keys(self, rows: Tensor, name: str) -> Tensor:
        """Keys of an attention module, float32 [kv_heads, n, d]."""
        return self._heads(self.map(rows, f"{name}k_proj"), self.language.kv_heads)

    def attend(self, queries: Tensor, keys: Tensor, rows: Tensor, name: str) -> Tensor:
        """Full attention, each query to all keys; float32 [n, D].

        Args:
            queries: [heads, n, d].
            keys: [kv_heads, m, d].
            rows: [m, D], where the values come from.
            name: of the attention module.
        """
        values = self._heads(self.map(rows, f"{name}v_proj"), self.language.kv_heads)
        mixed = scaled_dot_product_attention(queries[None], keys[None], values[None], enable_gqa=True)[0]
        return self.map(mixed.transpose(0, 1).flatten(1), f"{name}o_proj")

    def _heads(self, rows: Tensor, heads: int) -> Tensor:
        return rows.view(len(rows), heads, self.language.head).transpose(0, 1)


class TrainedLayout:
    """Which tensors a strategy needs of weights that others have trained, which the operator's configuration names.

    Attributes:
        anchor: a tensor that only its weights have; what stands in front of that name in a checkpoint stands in front
            of all of them.
        source: where the authors publish them, for the documentation.
    """

    name: ClassVar[str]
    anchor: ClassVar[str]
    source: ClassVar[str]

    @classmethod
    def layout(cls, shapes: Shapes, language: LanguageShape) -> dict[str, tuple[int, ...]]:
        """The tensors that it needs and their shapes, for a language model.

        Args:
            shapes: what a file holds, by names without the prefix; says what the sizes leave open.
            language: of the served model.

        Raises:
            LayoutError: no choice of what is open would fit.
        """
        raise NotImplementedError

    @classmethod
    def check(cls, shapes: Shapes, language: LanguageShape) -> tuple[str, ...]:
        """Names of the tensors that it needs.

        Raises:
            LayoutError: one is missing or has another shape.
        """
        for name, shape in (expected := cls.layout(shapes, language)).items():
            if name not in shapes:
                raise LayoutError(f"{name} is missing")
            if tuple(shapes[name]) != shape:
                has = f"{name} has the shape {list(shapes[name])}"
                raise LayoutError(f"{has}, and {cls.served(language)} needs {list(shape)}")
        return tuple(expected)

    @classmethod
    def served(cls, language: LanguageShape) -> str:
        """The sizes of the served model that the layout follows, for people."""
        return f"a language model {language.words}"


class TrainedStrategy(TrainedLayout, Strategy):
    """A visual strategy with such weights."""

    needs = frozenset({"weights"})

    def network(self, context: Context) -> Network:
        """The trained layers.

        Raises:
            ValueError: the model adapter did not give them.
        """
        network: Network = required(self.name, "weights", context.network)
        return network
