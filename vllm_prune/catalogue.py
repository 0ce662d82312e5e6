"""The catalogue of strategies, for the route, the command line and the README."""

from __future__ import annotations

from typing import Any

from .kv.strategies import names as kv_names
from .kv.strategies import strategy_class as kv_strategy_class
from .visual.strategies import names, strategy_class


def entries() -> list[dict[str, Any]]:
    """One dict per strategy: name, part, modalities, needs, summary, paper, options (JSON schema)."""
    return [*_visual(), *_kv()]


def _visual() -> list[dict[str, Any]]:
    found = []
    for name in names():
        cls = strategy_class(name)
        found.append(
            {
                "name": name,
                "part": "visual",
                "modality": sorted(cls.modalities),
                "needs": sorted(cls.needs),
                "summary": cls.summary,
                "paper": cls.paper,
                "options": cls.Options.model_json_schema(),
            }
        )
    return found


def _kv() -> list[dict[str, Any]]:
    classes = [kv_strategy_class(name) for name in kv_names()]
    return [
        {
            "name": cls.name,
            "part": "kv",
            "modality": ["cache"],
            "needs": sorted(cls.needs),
            "summary": cls.summary,
            "paper": cls.paper,
            "options": cls.Options.model_json_schema(),
        }
        for cls in classes
    ]


def markdown(part: str = "visual") -> str:
    """One part of the catalogue as a Markdown table, as it stands in the README."""
    lines = ["| strategy | for | what it keeps | needs | source |", "|---|---|---|---|---|"]
    for entry in entries():
        if entry["part"] != part:
            continue
        needs = ", ".join(entry["needs"]).replace("_", " ") or "-"
        kinds = ", ".join(entry["modality"])
        lines.append(f"| `{entry['name']}` | {kinds} | {entry['summary']} | {needs} | {entry['paper']} |")
    return "\n".join(lines)
