"""Bitmaps of kept tokens, against numpy's packing."""

from __future__ import annotations

import base64

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vllm_prune.grid import bitmap


@given(st.lists(st.booleans(), max_size=200))
def test_bits_are_numpys(flags: list[bool]) -> None:
    kept = np.flatnonzero(flags).tolist()
    assert base64.b64decode(bitmap(kept, len(flags))) == np.packbits(np.array(flags, dtype=bool)).tobytes()


def test_the_first_token_is_the_highest_bit() -> None:
    assert base64.b64decode(bitmap([0, 9], 10)) == bytes([0b10000000, 0b01000000])
