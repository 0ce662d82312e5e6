"""Numbers by which a test's stores are found."""

from __future__ import annotations

from itertools import count

_NUMBERS = count(1000)


def key() -> int:
    """A number that no store of an engine or of another test has."""
    return next(_NUMBERS)
