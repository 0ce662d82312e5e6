"""The KV budget of one request, in the form that travels to the scheduler and the workers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from decimal import Decimal, InvalidOperation
from typing import Any

from pydantic import ValidationError

from ..catalogue import KV
from .errors import BudgetError, first_problem
from .fields import MAX_BUFFER, MAX_TOKENS, MAX_WINDOW

KEY = "vllm_prune_kv"
"""Key of the wire form among a request's extra sampling arguments."""

REPORT = "vllm_prune_kv"
"""Key of the scheduler's report among an engine output's transfer parameters."""

DEFAULT_WINDOW = 8

QUADRATIC_SHARE = 64
"""Rows of the budget for each row of the smallest buffer, where scoring is quadratic."""

FEWEST_ROWS = 3
"""Smallest budget: one scored row and a window, as in GUI-KV (its window is min(8, C - 2))."""


@dataclass(frozen=True)
class KvSpec:
    """Canonical KV budget.

    Attributes:
        strategy: catalogue name.
        options: canonical JSON of the strategy's options.
        keep: ratio of the prompt's cached rows, as decimal text; None when `max_tokens` is given.
        max_tokens: rows cached per layer and KV head after each compaction.
        window: rows at the end that are always kept; fewer where the budget is small, see `window_of`.
        buffer: decode rows past the budget before it is compacted again.
        ticket: names the HTTP request that waits for the report.
        window_named, buffer_named: whether the request names them; defaults follow the budget and are never "clamped".
    """

    strategy: str
    options: str = "{}"
    keep: str | None = None
    max_tokens: int | None = None
    window: int = DEFAULT_WINDOW
    buffer: int = 128
    ticket: str = ""
    window_named: bool = False
    buffer_named: bool = False

    def count(self, prompt: int) -> int:
        """C, rows that a compaction leaves, for a prompt of that many cached rows."""
        return max(FEWEST_ROWS, self._requested_count(prompt))

    def _requested_count(self, prompt: int) -> int:
        if self.keep is not None:
            return int(Decimal(self.keep) * prompt)
        assert self.max_tokens is not None
        return self.max_tokens

    def window_of(self, count: int, max_window: int | None = None) -> int:
        """W for a budget of `count` rows: at least one scored row is left beside it.

        Args:
            count: C.
            max_window: most that the engine observes, None for no bound.
        """
        return max(1, min(self.window, count - 2, self.window if max_window is None else max_window))

    def buffer_of(self, count: int, quadratic: bool) -> int:
        """Decode rows past a budget of `count` rows before it is compacted again.

        A strategy whose time grows with the square of the rows gets at least 1/64 of the budget: then it takes time in
        proportion to the rows per decoded token, as attention does.
        """
        return max(self.buffer, -(-count // QUADRATIC_SHARE)) if quadratic else self.buffer

    def clamped(self, prompt: int, max_window: int | None = None, quadratic: bool = False) -> list[dict[str, Any]]:
        """Entries of `usage.pruning.clamped` for what this budget asks for and a prompt of that length cannot have.

        Args:
            prompt: rows of the prompt.
            max_window: most that the engine observes, None for no bound.
            quadratic: see `buffer_of`.
        """
        entries: list[dict[str, Any]] = []

        def add(name: str, requested: float, applied: float, reason: str) -> None:
            entry = {"param": f"pruning.kv.{name}", "requested": requested, "applied": applied, "reason": reason}
            entries.append(entry)

        if self._requested_count(prompt) < FEWEST_ROWS:
            if self.keep is not None:
                add("keep", float(self.keep), float(f"{min(1.0, FEWEST_ROWS / prompt):.6g}"), "min_rows")
            else:
                add("max_tokens", self._requested_count(prompt), FEWEST_ROWS, "min_rows")
        room = max(1, self.count(prompt) - 2)
        window = self.window_of(self.count(prompt), max_window)
        if self.window_named and window < self.window:
            add("window", self.window, window, "window_over_budget" if window == room else "max_window")
        buffer = self.buffer_of(self.count(prompt), quadratic)
        if self.buffer_named and buffer > self.buffer:
            add("buffer", self.buffer, buffer, "quadratic")
        return entries

    def due(self, prompt: int, rows: int, compacted: bool, count: int | None = None) -> bool:
        """Whether a request with that many cached rows is to be compacted now.

        Args:
            prompt: rows of the prompt.
            rows: rows cached.
            compacted: whether it has been compacted since its last prefill.
            count: rows that a compaction leaves in these layers; None for as many as in all.
        """
        count = self.count(prompt) if count is None else count
        return rows > count + (self.buffer if compacted or count >= prompt else 0)

    def gamma(self, prompt: int, count: int | None = None) -> float:
        """Share of the prompt that is kept, in (0, 1]: the count's, which is a whole number, not the requested one.

        Args:
            prompt: rows of the prompt.
            count: as for `due`.
        """
        return min(1.0, (self.count(prompt) if count is None else count) / prompt)

    def wire(self) -> str:
        """JSON text with a fixed key order."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def of(cls, extra_args: Mapping[str, Any] | None) -> KvSpec | None:
        """The budget among a request's extra arguments, None where there is none.

        Everything is checked, as the text may come from anybody who can set extra arguments.

        Raises:
            BudgetError: not the wire form of a budget that can be carried out.
        """
        text = (extra_args or {}).get(KEY)
        if text is None:
            return None
        raw = _object(text, KEY)
        if set(raw) != {field.name for field in fields(cls)}:
            raise _malformed(KEY, f"it has the keys {sorted(str(key) for key in raw)}")
        for name in ("strategy", "options", "ticket"):
            if type(raw[name]) is not str:
                raise _malformed(name, "it is no text")
        for name in ("window_named", "buffer_named"):
            if type(raw[name]) is not bool:
                raise _malformed(name, "it is neither true nor false")
        for name, most in (("window", MAX_WINDOW), ("buffer", MAX_BUFFER)):
            _check_count(name, raw[name], most)
        if (raw["keep"] is None) == (raw["max_tokens"] is None):
            raise _malformed("keep", "give one of keep and max_tokens")
        if raw["keep"] is None:
            _check_count("max_tokens", raw["max_tokens"], MAX_TOKENS)
        else:
            _check_ratio(raw["keep"])
        _check_strategy(raw["strategy"], _object(raw["options"], "options"))
        return cls(**raw)


def _malformed(name: str, why: str) -> BudgetError:
    return BudgetError(f"the KV budget among the extra arguments is malformed at {name}: {why}", f"extra_args.{KEY}")


def _object(text: Any, name: str) -> dict[str, Any]:
    try:
        raw = json.loads(text) if type(text) is str else None
    except (ValueError, RecursionError):
        raw = None
    if type(raw) is not dict:
        raise _malformed(name, "it is not the text of a JSON object")
    return raw


def _check_count(name: str, number: Any, most: int) -> None:
    if type(number) is not int or not 1 <= number <= most:
        raise _malformed(name, f"it is no whole number from 1 to {most}")


def _check_ratio(text: Any) -> None:
    try:
        ratio = Decimal(text) if type(text) is str else None
    except InvalidOperation:
        ratio = None
    if ratio is None or not ratio.is_finite() or not 0 < ratio < 1:
        raise _malformed("keep", "it is no decimal text between 0 and 1")


def _check_strategy(name: str, options: Mapping[str, Any]) -> None:
    if name not in KV.names():
        raise _malformed("strategy", f"known are {', '.join(KV.names())}")
    try:
        KV.create(name, options)
    except ValidationError as error:
        first = first_problem(error)
        raise _malformed("options", f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None
