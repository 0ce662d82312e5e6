"""In which order the files of a data set are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def turns(sources: Iterable[Iterator[T]]) -> Iterator[T]:
    """One item of each source in turn, so that a limit takes some of each."""
    waiting = list(sources)
    while waiting:
        for source in list(waiting):
            try:
                yield next(source)
            except StopIteration:
                waiting.remove(source)
