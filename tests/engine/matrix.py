"""The requests that both families are tested with: media in every order, times budgets of every form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_prune.catalogue import VISUAL
from vllm_prune.visual.strategies.base import PixelStrategy

from . import media
from .checkpoints import CELL
from .engines import answer_of, generate
from .media import Request, Visual
from .oracle import Answer, Expected, Oracle

STEPS = 12
# Chunks this small split media items over several steps.
CHUNK = 48
UNIFORM: dict[str, Any] = {"strategy": "uniform"}

BUDGETS: dict[str, Visual] = {
    "none": None,
    "half": {**UNIFORM, "keep": 0.5},
    "tenth": {**UNIFORM, "keep": 0.1},
    # Less than one token per frame: some frames keep nothing.
    "hundredth": {**UNIFORM, "keep": 0.01},
    "all": {**UNIFORM, "keep": 1.0},
    "shared": {**UNIFORM, "max_tokens": 40},
    "images only": {**UNIFORM, "image": {"keep": 0.3}},
    "no videos": {**UNIFORM, "keep": 0.4, "video": None},
    "each its own": {"image": {**UNIFORM, "keep": 0.7}, "video": {**UNIFORM, "max_tokens": 17}},
}
# Their choice needs neither the item's seed nor anything beside the features.
STRATEGIES = tuple(
    name
    for name in ("divprune", "elastic_pool", "evs", "mc_evs", "vidcom2")
    if name in VISUAL.names() and not issubclass(VISUAL.strategy_class(name), PixelStrategy)
)


def cases(family: str) -> dict[str, tuple[Any, ...]]:
    """Media of each case, i for image and v for video in prompt order."""
    cell = CELL[family]
    a, b = media.image(4 * cell, 6 * cell, 1), media.image(5 * cell, 4 * cell, 2)
    c, d = media.image(2 * cell, 3 * cell, 3), media.image(3 * cell, 3 * cell, 4)
    v = media.video(8, 4 * cell, 5 * cell, 30, 15, 5)
    # 1.2 sampled frames per second: temporal step 3.33 on Qwen2.5-VL; odd frame counts repeat the last frame.
    u = media.video(7, 3 * cell, 4 * cell, 24, 20, 6)
    # Temporal step 10: the temporal extent is larger than the spatial one.
    long = media.video(12, 3 * cell, 3 * cell, 10, 25, 7)
    # 2.4 sampled frames per second: float32 puts grid step 3 at position 4, exact arithmetic at 5.
    odd = (media.image(4 * cell - 11, 6 * cell + 5, 8), media.video(7, 3 * cell + 9, 4 * cell - 7, 24, 10, 9))
    # Qwen3-VL's processor refuses a single frame.
    still = media.video(1 if family == "qwen2_5_vl" else 2, 3 * cell, 5 * cell, 30, 15, 10)
    return {
        "i": (a,), "ii": (a, b), "v": (v,), "iv": (a, v), "vi": (u, b), "vv": (v, u), "ivi": (a, u, b),
        "six items": (a, v, c, u, d, b), "odd sizes": odd, "still": (still,), "long": (long, c),
    }  # fmt: skip


def strategy_budget(name: str) -> dict[str, Any]:
    """A third of each modality that the strategy handles; the other one is left whole."""
    return {modality: {"strategy": name, "keep": 0.3} for modality in sorted(VISUAL.strategy_class(name).modalities)}


def requests(family: str) -> dict[str, Request]:
    """All requests by name."""
    shown = cases(family)
    plain = {
        f"{case}, {budget}": media.ask(*items, visual=visual)
        for case, items in shown.items()
        for budget, visual in BUDGETS.items()
    }
    mixed = {
        f"{case}, {name}": media.ask(*shown[case], visual=strategy_budget(name))
        for case in ("i", "v", "ivi", "six items")
        for name in STRATEGIES
    }
    return {**plain, **mixed}


NAMES = [
    *(f"{case}, {budget}" for case in cases("qwen2_5_vl") for budget in BUDGETS),
    *(f"{case}, {name}" for case in ("i", "v", "ivi", "six items") for name in STRATEGIES),
]


@dataclass(frozen=True)
class Rounds:
    """Expected answers, and an engine's answers with cold caches and with caches from before."""

    expected: Mapping[str, Expected]
    cold: Mapping[str, Answer]
    cached: Mapping[str, Answer]
    prefix_hits: int


def play(family: str, oracle: Oracle, llm: Any) -> Rounds:
    """Ask everything in one batch, then once more."""
    asked = requests(family)
    expected = {name: oracle.answer(request, STEPS) for name, request in asked.items()}
    cold = generate(llm, list(asked.values()), STEPS)
    cached = generate(llm, list(asked.values()), STEPS)
    hits = sum(output.num_cached_tokens for output in cached)
    return Rounds(expected, _named(asked, cold), _named(asked, cached), hits)


def _named(asked: Mapping[str, Request], outputs: Sequence[Any]) -> dict[str, Answer]:
    return {name: answer_of(output) for name, output in zip(asked, outputs, strict=True)}


def worst(rounds: Rounds) -> float:
    """Largest log-probability error over both rounds."""
    return max(
        abs(a - b)
        for answers in (rounds.cold, rounds.cached)
        for name, answer in answers.items()
        for a, b in zip(answer.logprobs, rounds.expected[name].logprobs, strict=True)
    )
