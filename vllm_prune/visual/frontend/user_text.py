"""The text that a strategy may read: what the last user message says, as token ids of the prompt."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

MOST = 512
"""Token ids that travel with an item: the last ones of a longer message, which usually ends with the question."""


@dataclass(frozen=True)
class Turns:
    """How a chat template in ChatML marks the turns of a prompt.

    Attributes:
        start, end: token ids that begin and end a turn.
        role: token ids of the word "user", with which a user's turn begins.
        newline: those of the line break behind it.
        others: token ids that are no text: special ones, and those that stand for media.
    """

    start: int | None
    end: int | None
    role: tuple[int, ...]
    newline: tuple[int, ...]
    others: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Any, media: Collection[int]) -> Turns:
        """From a tokenizer and the token ids that stand for media."""
        words = tokenizer.get_vocab()
        role, newline = (tuple(tokenizer.encode(text, add_special_tokens=False)) for text in ("user", "\n"))
        others = frozenset(tokenizer.all_special_ids) | frozenset(media)
        return cls(words.get("<|im_start|>"), words.get("<|im_end|>"), role, newline, others)

    def last_user_text(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """Token ids of the last user message without media, at most `MOST`; of a prompt without turns, all of it."""
        text = self._last_turn(list(prompt))
        return tuple(token for token in text if token not in self.others)[-MOST:]

    def _last_turn(self, prompt: list[int]) -> list[int]:
        for start in range(len(prompt) - len(self.role) - 1, -1, -1):
            first = start + 1 + len(self.role)
            if prompt[start] == self.start and tuple(prompt[start + 1 : first]) == self.role:
                if tuple(prompt[first : first + len(self.newline)]) == self.newline:
                    first += len(self.newline)
                rest = prompt[first:]
                return rest[: rest.index(self.end)] if self.end in rest else rest
        return prompt
