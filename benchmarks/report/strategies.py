"""Tables of the strategies and of their options, from the strategies' classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_prune.catalogue import KV, VISUAL, Catalogue, markdown

from .files import NOT_MEASURED, read, table
from .schema import attributes, default, kind

SLOW = 0.06
"""Share of the unpruned prefill from which on a strategy is called slow."""
HEAD = ["option", "values", "default", "meaning"]


def names_by_kind() -> str:
    """Every name, by what it is for."""
    visual = VISUAL.entries()
    kinds = {
        "images and videos": [entry["name"] for entry in visual if entry["modality"] == ["image", "video"]],
        "videos": [entry["name"] for entry in visual if entry["modality"] == ["video"]],
        "the KV cache": KV.names(),
    }
    return "\n".join(f"- for {title}: {', '.join(f'`{name}`' for name in names)}" for title, names in kinds.items())


def visual_table() -> str:
    """The visual strategies."""
    return markdown(VISUAL)


def kv_table() -> str:
    """The KV strategies."""
    return markdown(KV)


def visual_options() -> str:
    """One table for the visual strategies that take the same options."""
    return _options(VISUAL)


def kv_options() -> str:
    """One table for the KV strategies that take the same options."""
    return _options(KV)


def costs(results: Path) -> str:
    """What choosing takes, beside the prefill of as many tokens."""
    result = read(results / "strategy_cost.json")
    if result is None:
        return NOT_MEASURED
    whole = result["prefill"]
    by_case = {(row["strategy"], row["modality"], row["keep"]): row["ms"] for row in result["rows"]}
    keeps = sorted({keep for _, _, keep in by_case}, reverse=True)
    lines = []
    for name, modality in dict.fromkeys((name, modality) for name, modality, _ in by_case):
        times = [by_case[name, modality, keep] for keep in keeps]
        cells = [f"{ms:.0f} ms, {ms / whole['ms']:.1%}" for ms in times]
        lines.append([f"`{name}`", modality, *cells, "slow" if max(times) > SLOW * whole["ms"] else ""])
    head = ["strategy", "modality", *(f"{keep:.0%} kept" for keep in keeps), f"over {SLOW:.0%}"]
    return table(head, lines) + (
        f"\n\nChoosing among {result['tokens']:,} visual tokens of {result['width']} values on one thread, gathering "
        f"and merging included, and its share of the unpruned prefill of as many tokens, {whole['ms'] / 1000:.1f} s "
        f"by a language model of a checkpoint of {whole['parameters'] / 1e6:.0f}M parameters; a larger model's prefill "
        f"grows faster than the cost of choosing. {result['hardware']['device']}, vLLM {result['hardware']['vllm']}. "
        f"Command: `{result['command']}`."
    )


def scaling(results: Path) -> str:
    """How what choosing takes grows with the visual tokens."""
    result = read(results / "strategy_scaling.json")
    if result is None:
        return NOT_MEASURED
    ends = f"per visual token, {max(result['sizes']):,} over {result['reference']:,}"
    lines = []
    for row in result["rows"]:
        first, last = (f"{row['ms'][str(of(result['sizes']))]:.1f} ms" for of in (min, max))
        fit = (first, last, f"{row['exponent']:.2f}", f"{row['growth']:.2f}")
        lines.append([f"`{row['strategy']}`", row["modality"], f"{row['keep']:.0%}", *fit])
    head = ["strategy", "modality", "kept", *(f"{of(result['sizes']):,}" for of in (min, max)), "exponent", ends]
    return table(head, lines) + (
        f"\n\nProcessor time of choosing, gathering and merging on one thread, features of {result['width']} values, "
        f"at {', '.join(f'{size:,}' for size in result['sizes'])} visual tokens; the exponent is that of the line "
        f"through their logarithms (1: in proportion to the visual tokens). Images are one frame, videos frames "
        f"of 256. {result['hardware']['device']}. Command: `{result['command']}`."
    )


def _options(catalogue: Catalogue[Any]) -> str:
    by_model: dict[type[Any], list[str]] = {}
    for name in catalogue.names():
        by_model.setdefault(catalogue.strategy_class(name).Options, []).append(f"`{name}`")
    return "\n\n".join(
        f"{', '.join(names)}:\n\n{table(HEAD, _rows(model.model_json_schema(), model))}"
        for model, names in by_model.items()
        if model.model_fields
    )


def _rows(schema: dict[str, Any], model: type[Any]) -> list[list[str]]:
    texts = attributes(model)
    return [
        [f"`{name}`", kind(field, schema), default(name, field), texts[name]]
        for name, field in schema["properties"].items()
    ]
