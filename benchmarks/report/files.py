"""Reading committed results, and what all tables have in common."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

NOT_MEASURED = "Not measured yet."


def read(path: Path) -> Any:
    """A committed result, None where it has not been measured."""
    return json.loads(path.read_text()) if path.exists() else None


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
