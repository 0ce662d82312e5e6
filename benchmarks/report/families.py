"""The table of model families, from the adapters' own table."""

from __future__ import annotations

from vllm_prune.visual.models.table import FAMILIES, Family

from .files import table

HEAD = ["family", "vLLM architecture", "images", "videos", "cut in the tower", "positions of kept tokens", "KV budgets",
        "compared with transformers"]  # fmt: skip
PLACES = {
    "grid": "original, on the grid",
    "original": "original, one per token",
    "compact": "of the shortened prompt",
}


def families() -> str:
    """One row per architecture."""
    return table(HEAD, [_row(name, family) for name, family in FAMILIES.items()])


def _row(name: str, family: Family) -> list[str]:
    videos = "yes, counts per frame" if family.per_frame else "yes"
    return [
        family.name,
        f"`{name}`",
        "yes" if "image" in family.modalities else "refused",
        videos if "video" in family.modalities else "-",
        "yes" if family.cuts else "refused",
        PLACES[family.positions],
        family.kv,
        family.tested,
    ]
