"""The request's text, for strategies that cannot do without it."""

from __future__ import annotations

from torch import Tensor

from ._signals import required
from .base import Context
from .maths import unit_rows


def similarity_to_text(strategy: str, tokens: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """Cosine of each cell with each text token, float32 [M, L], and the lengths of the text's embeddings, [L].

    Args:
        strategy: its name, for the error.
        tokens: [M, D], of the item.
        context: see `Context`.

    Raises:
        ValueError: the model adapter did not give the text.
    """
    text = text_of(strategy, tokens, context)
    return unit_rows(tokens) @ unit_rows(text).T, text.norm(dim=1)


def text_of(strategy: str, tokens: Tensor, context: Context) -> Tensor:
    """The text's embeddings, float32 [L, D], on the device of the tokens; see `similarity_to_text`."""
    return required(strategy, "text", context.text).to(tokens.device).float()
