"""The signature table: names of vLLM that we override, wrap or call, with the parameters that we rely on.

To add an entry, put a `VllmSignature(MODULE, NAME, PARAMETERS)` into the module of its subject. A name that a supported
version keeps elsewhere, or has with other parameters, is one entry with `older=(Home(...), ...)`. Code that replaces or
looks up such a name gets it by `load`, `holder` or `wrap`, so that what is checked is what is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from .entry import Home, UnknownSignature, VllmSignature
from .kv import KV_SIGNATURES
from .media import CONTENT_SIGNATURES, MEDIA_SIGNATURES
from .models import MODEL_SIGNATURES
from .serving import LAUNCH_SIGNATURES, PREVIEW_SIGNATURES, SERVING_SIGNATURES
from .tools import BENCH_SIGNATURES, METRICS_SIGNATURES

__all__ = [
    "ALL_SIGNATURES",
    "BENCH_SIGNATURES",
    "KV_SIGNATURES",
    "METRICS_SIGNATURES",
    "SIGNATURES",
    "Home",
    "UnknownSignature",
    "VllmSignature",
    "holder",
    "load",
    "signature_problems",
    "wrap",
]

SIGNATURES: tuple[VllmSignature, ...] = (
    *KV_SIGNATURES,
    *MEDIA_SIGNATURES,
    *CONTENT_SIGNATURES,
    *SERVING_SIGNATURES,
    *PREVIEW_SIGNATURES,
    *LAUNCH_SIGNATURES,
    *MODEL_SIGNATURES,
)
"""What a server with budgets needs."""
ALL_SIGNATURES: tuple[VllmSignature, ...] = (*SIGNATURES, *METRICS_SIGNATURES, *BENCH_SIGNATURES)


def signature_problems(signatures: Sequence[VllmSignature] = SIGNATURES) -> list[str]:
    """Names of vLLM that are not as this version expects; empty on a supported vLLM."""
    return [problem for signature in signatures if (problem := signature.problem())]


@cache
def entry_of(name: str) -> VllmSignature:
    """The entry of a name.

    Args:
        name: as in the table, such as `BaseRenderer.render_chat_async`; `MODULE:NAME` where two modules have it.

    Raises:
        LookupError: no entry, or several.
    """
    module, _, attribute = name.rpartition(":")
    entries = [e for e in ALL_SIGNATURES if e.name == attribute and module in ("", e.module)]
    if len(entries) != 1:
        raise LookupError(f"{len(entries)} entries of the signature table are called {name!r}; add one, or its module")
    return entries[0]


def load(name: str) -> Any:
    """What a name of the table stands for in the installed vLLM; raises `UnknownSignature` where it is missing."""
    return entry_of(name).load()


def wrap(name: str, decorator: Callable[[Any], Any]) -> None:
    """Put `decorator(original)` in the place of what a name of the table stands for; raises `UnknownSignature`."""
    entry_of(name).wrap(decorator)


def holder(name: str) -> Any:
    """The class or module that has a name of the table as its attribute; raises `UnknownSignature`."""
    return entry_of(name).holder()
