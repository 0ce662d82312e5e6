"""What a pydantic model says of its fields, in words: kinds, defaults, and the texts of its docstring."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Any

MIB = 1 << 20


def attributes(model: type[Any]) -> dict[str, str]:
    """Texts of the `Attributes:` section of a class and of the classes that it extends, by field.

    A line `first, second: text` speaks of both.
    """
    texts: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
        texts |= _entries(textwrap.dedent(section))
    return texts


def _entries(section: str) -> dict[str, str]:
    texts: dict[str, str] = {}
    for entry in filter(None, re.split(r"\n(?=\S)", section.split("\n\n")[0])):
        names, _, text = entry.partition(": ")
        sentence = " ".join(text.split())
        sentence = sentence[:1].upper() + sentence[1:]
        texts |= {name.strip(): sentence for name in names.split(",")}
    return texts


def kind(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """What values a field of a JSON schema takes, in words."""
    if "$ref" in field:
        field = schema["$defs"][field["$ref"].rpartition("/")[2]] | {key: field[key] for key in field if key != "$ref"}
    if "anyOf" in field:
        return " or ".join(kind(one, schema) for one in field["anyOf"] if one.get("type") != "null")
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return "list of " + ("integers" if field.get("items", {}).get("type") == "integer" else "texts")
    name = {"integer": "integer", "number": "number", "boolean": "`true` or `false`", "string": "text"}
    return name.get(field["type"], "section") + _bounds(field)


def _bounds(field: dict[str, Any]) -> str:
    low, over = field.get("minimum"), field.get("exclusiveMinimum")
    high = field.get("maximum")
    if high is not None:
        return f", {low:,} to {high:,}" if low is not None else f", over {over:,}, at most {high:,}"
    if low is not None:
        return f", {low:,} or more"
    return "" if over is None else f", over {over:,}"


def default(name: str, field: dict[str, Any]) -> str:
    """The default of a field, sizes in MiB."""
    value = field.get("default")
    if value is None:
        return "required" if "default" not in field else "-"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if name.endswith("_bytes") and value % MIB == 0:
        return f"{value >> 20:,} MiB"
    if isinstance(value, list | dict):
        return "-"
    return f"`{value}`" if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:g}"
