"""Which budgets the requests of a load test carry."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class MixError(ValueError):
    """A mix that cannot be read; the message says how to write one."""


@dataclass(frozen=True)
class Budget:
    """One class of requests.

    Attributes:
        name: as it was written.
        field: the `pruning` field of its requests, as JSON text.
    """

    name: str
    field: str

    @property
    def pruning(self) -> Any:
        """The `pruning` field."""
        return json.loads(self.field)


def parse_mix(text: str) -> list[Budget]:
    """Budgets of a mix such as `off,off,0.5,gui_dedup:0.25,kv:0.2,kv:snapkv:0.1,@fast`.

    Commas separate classes; one that is written twice gets twice the requests. `off` turns pruning off, a number is a
    visual budget with the server's default strategy, `STRATEGY:NUMBER` one with that strategy, `kv:` before either
    makes it a KV budget, and `@NAME` is the operator's preset.

    Raises:
        MixError: a class that is none of these.
    """
    budgets = [_budget(part.strip()) for part in text.split(",") if part.strip()]
    if not budgets:
        raise MixError("the mix is empty; write for example off,0.5")
    return budgets


def _budget(text: str) -> Budget:
    if text == "off":
        return Budget(text, '{"visual": null, "kv": null}')
    if text.startswith("@") and len(text) > 1:
        return Budget(text, json.dumps(text[1:]))
    part, other = ("kv", "visual") if text.startswith("kv:") else ("visual", "kv")
    strategy, _, ratio = text.removeprefix("kv:").rpartition(":")
    try:
        keep = float(ratio)
    except ValueError:
        raise MixError(
            f"{text!r} is no budget; write off, 0.5, STRATEGY:0.5, kv:0.2, kv:STRATEGY:0.2 or @PRESET"
        ) from None
    if not 0 < keep <= 1:
        raise MixError(f"{text!r}: a ratio is above 0 and at most 1")
    named = {"strategy": strategy} if strategy else {}
    return Budget(text, json.dumps({part: {**named, "keep": keep}, other: None}))


def assign(mix: Sequence[Budget], requests: int, seed: int) -> list[Budget]:
    """A budget per request: equal shares of the mix, in a random order that depends on `seed` alone."""
    chosen = [mix[i % len(mix)] for i in range(requests)]
    random.Random(seed).shuffle(chosen)
    return chosen
