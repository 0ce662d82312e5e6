"""The one check that an adapter gave a strategy what it declares in `needs`."""

from __future__ import annotations

from typing import TypeVar

from ...signals import VisualSignal

_T = TypeVar("_T")


def required(strategy: str, signal: VisualSignal, value: _T | None) -> _T:
    """A signal's value.

    Args:
        strategy: its name, for the error.
        signal: its name, likewise.
        value: from the `Context`.

    Raises:
        ValueError: the model adapter did not give it.
    """
    if value is None:
        raise ValueError(f"strategy {strategy!r} needs the signal {signal!r}, which was not given")
    return value
