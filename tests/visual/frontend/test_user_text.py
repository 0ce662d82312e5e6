"""Which part of a prompt a strategy reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from vllm_prune.visual.frontend.user_text import MOST, Turns

START, END, USER, SYSTEM, ASSISTANT, LINE, IMAGE, MARK = range(100, 108)


def turns(start: int | None = START) -> Turns:
    words = {"user": [USER], "\n": [LINE]}
    vocabulary = {} if start is None else {"<|im_start|>": START, "<|im_end|>": END}
    tokenizer: Any = SimpleNamespace(
        get_vocab=lambda: vocabulary,
        encode=lambda text, add_special_tokens: words[text],
        all_special_ids=[START, END, MARK],
    )
    return Turns.of(tokenizer, {IMAGE})


def turn(role: int, *tokens: int) -> list[int]:
    return [START, role, LINE, *tokens, END, LINE]


def test_the_last_user_message_without_its_media() -> None:
    prompt = [*turn(SYSTEM, 1, 2), *turn(USER, MARK, IMAGE, MARK, 3, 4), START, ASSISTANT, LINE]
    assert turns().last_user_text(prompt) == (3, 4)
    later = [*prompt, 5, 6, END, LINE, *turn(USER, 7, LINE, 8), START, ASSISTANT, LINE]
    assert turns().last_user_text(later) == (7, LINE, 8)


def test_text_on_both_sides_of_a_picture() -> None:
    assert turns().last_user_text(turn(USER, 1, MARK, IMAGE, MARK, 2)) == (1, 2)


def test_the_word_alone_begins_no_turn() -> None:
    assert turns().last_user_text(turn(USER, 1, USER, 2)) == (1, USER, 2)


def test_no_text_and_no_turns() -> None:
    assert turns().last_user_text(turn(USER, MARK, IMAGE, MARK)) == ()
    assert turns().last_user_text([MARK, IMAGE, 9, 8]) == (9, 8)
    assert turns(None).last_user_text([IMAGE, 9, 8]) == (9, 8)
    # A prompt that ends inside the turn.
    assert turns().last_user_text([START, USER, LINE, 5]) == (5,)


def test_of_long_messages_the_end() -> None:
    assert turns().last_user_text(turn(USER, *range(1000, 1000 + 2 * MOST)))[-1] == 999 + 2 * MOST
    assert len(turns().last_user_text(turn(USER, *range(1000, 1000 + 2 * MOST)))) == MOST
