"""The catalogue of strategies, for the route, the command line and the README."""

from __future__ import annotations

from typing import Any

from .visual.strategies import names, strategy_class


def entries() -> list[dict[str, Any]]:
    """One dict per strategy: name, part, modalities, needs, summary, paper, options (JSON schema)."""
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


def markdown() -> str:
    """The catalogue as a Markdown table, as it stands in the README."""
    lines = ["| strategy | for | what it keeps | needs | source |", "|---|---|---|---|---|"]
    for entry in entries():
        needs = ", ".join(entry["needs"]).replace("_", " ") or "-"
        kinds = ", ".join(entry["modality"])
        lines.append(f"| `{entry['name']}` | {kinds} | {entry['summary']} | {needs} | {entry['paper']} |")
    return "\n".join(lines)
