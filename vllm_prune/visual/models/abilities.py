"""What a family's adapter cannot do for a budget, and what to tell its client."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...budget.canonical import Part
from ...budget.errors import Finding
from ...catalogue import LAYER_GROUPS, VISUAL
from ...signals import VisualSignal
from .table import FAMILIES, Family

PARAM = "pruning.visual.strategy"
WORDS: dict[VisualSignal, str] = {
    "tower_attention": "the attention inside the vision tower",
    "scorer": "a cut inside the vision tower",
    "pixels": "the pixels of each visual token",
    "selector": "the tower's outputs",
    "projector": "the model's projector",
    "text": "the text of the last user message",
    "unpooled": "the frames of a video before the model pools them",
    "weights": "the tower's outputs",
    "any_size": "a processor that takes pictures of any size",
}
"""What each signal is, for people."""


def lacks(family: Family, signal: VisualSignal) -> str | None:
    """Why a strategy cannot have a signal on a family, None where it can."""
    if signal in family.signals:
        return None
    return f"it needs {WORDS[signal]}, which the adapter of {family.name} does not give; name another one"


def missing(family: Family, part: Part) -> Finding | None:
    """Why a family cannot honour the budget of a modality, None where it can."""
    options = json.loads(part.options)
    for signal in sorted(VISUAL.create(part.strategy, options).wanted()):
        if (text := lacks(family, signal)) is not None:
            return Finding("signal", PARAM, f"strategy {part.strategy!r} cannot run here: {text}")
    if options.get("where") == "tower" and not family.cuts:
        return Finding("hidden_tower", "pruning.visual.options.where", no_cut(family))
    return one_position(family.one_position) if options.get("positions", 1) > 1 else None


def one_position(reason: str | None) -> Finding | None:
    """The refusal of several positions for a merged token; None without a reason."""
    if not reason:
        return None
    text = f"merged tokens have one position each on this server: {reason}; use positions: 1"
    return Finding("positions", "pruning.visual.options.positions", text)


def no_cut(family: Family) -> str:
    """Why a family takes no cut inside the tower."""
    return f"the adapter of {family.name} does not cut inside the vision tower; use where: embed"


def families_with_positions(strategy: Mapping[str, Any]) -> list[str]:
    """Those of `families_of` where a merged token can carry several positions; empty for what merges none."""
    if "positions" not in strategy["options"]["properties"]:
        return []
    return [name for name in families_of(strategy) if not FAMILIES[name].one_position]


def families_of(strategy: Mapping[str, Any]) -> list[str]:
    """Architectures that can run a strategy of the catalogue with its default options, sorted.

    Args:
        strategy: an entry of `catalogue.entries`.
    """
    if strategy["part"] == "kv":
        # Gates stand behind every layer, and groups of layers divide them.
        every = not {LAYER_GROUPS, "gates"}.isdisjoint(strategy["needs"])
        evicted = {name: family for name, family in FAMILIES.items() if not family.kv.startswith("refused")}
        return sorted(name for name, family in evicted.items() if not (every and family.mixed_layers))
    wanted = VISUAL.create(strategy["name"]).wanted()
    return sorted(
        name
        for name, family in FAMILIES.items()
        if wanted <= family.signals and set(strategy["modality"]) & set(family.modalities)
    )
