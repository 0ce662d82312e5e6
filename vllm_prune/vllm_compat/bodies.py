"""The ledger of reviewed bodies: hashes of the functions of vLLM that we wrap, override or build on.

A signature can stay as it is while the function behind it changes what it does. For each supported version a person has
read the bodies that matter here; their hashes are in `reviewed.json`. A body with another hash is one that nobody has
read for this project. `scripts/review_bodies.py` lists these and takes them over.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

LEDGER = Path(__file__).with_name("reviewed.json")


@dataclass(frozen=True, order=True)
class Location:
    """Where a function or a class is defined.

    Attributes:
        module: dotted name of the module.
        name: `function`, `Class` or `Class.method`.
    """

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}:{self.name}"

    @classmethod
    def parse(cls, text: str) -> Location:
        """From `module:name`."""
        module, _, name = text.partition(":")
        return cls(module, name)

    @classmethod
    def of(cls, target: Any) -> Location | None:
        """Where an object of vLLM is defined, None for what has no source, such as data."""
        target = target.fget if isinstance(target, property) else getattr(target, "__func__", target)
        target = inspect.unwrap(target) if callable(target) else target
        module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
        return None if module is None or name is None or not _is_vllm(module) else cls(module, name)


@dataclass(frozen=True)
class Body:
    """A function or class in a source file: its path, its first line, and the hash of what it does."""

    path: Path
    line: int
    digest: str


def _is_vllm(module: str) -> bool:
    return module.split(".")[0] == "vllm"


def body_of(location: Location) -> Body | None:
    """The body at a location in the installed vLLM, None where there is none. Its module is not imported."""
    try:
        spec = importlib.util.find_spec(location.module)
    except ModuleNotFoundError:
        return None
    if spec is None or spec.origin is None:
        return None
    node: Any = _tree(spec.origin)
    for part in location.name.split("."):
        node = next((n for n in ast.walk(node) if _defines(n, part)), None) if node is not None else None
    return None if node is None else Body(Path(spec.origin), node.lineno, digest(node))


def _defines(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name


@cache
def _tree(path: str) -> ast.Module:
    return ast.parse(Path(path).read_text(encoding="utf-8"))


def digest(node: ast.AST) -> str:
    """Hash of code without comments, docstrings and layout, the same on every version of Python."""
    return hashlib.blake2s(json.dumps(_plain(node)).encode(), digest_size=8).hexdigest()


def _plain(value: Any) -> Any:
    """Lists and texts that stand for code; empty fields, which differ between versions of Python, are left out."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, ast.Constant):
        return ["Constant", type(value.value).__name__, repr(value.value)]
    if not isinstance(value, ast.AST):
        return repr(value)
    fields = {name: field for name, field in ast.iter_fields(value) if field not in (None, [])}
    if isinstance(value, ast.JoinedStr):
        # Python 3.12 puts empty texts between the fields of a format.
        fields["values"] = [v for v in value.values if not (isinstance(v, ast.Constant) and v.value == "")]
    if (
        isinstance(value, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and ast.get_docstring(value) is not None
    ):
        fields["body"] = value.body[1:]
    return [type(value).__name__, *([name, _plain(field)] for name, field in sorted(fields.items()))]


def ledger() -> dict[Location, dict[str, list[str]]]:
    """Hashes of reviewed bodies, by location and minor version of vLLM."""
    entries: Mapping[str, dict[str, list[str]]] = json.loads(LEDGER.read_text(encoding="utf-8"))
    return {Location.parse(text): hashes for text, hashes in entries.items()}


def reviewed_for(minor: str) -> list[Location]:
    """Locations with a reviewed body in a minor version of vLLM."""
    return sorted(location for location, hashes in ledger().items() if minor in hashes)


def unreviewed(locations: Iterable[Location], minor: str) -> list[Location]:
    """Locations whose body in the installed vLLM nobody has reviewed for a minor version."""
    known = ledger()
    return [
        location
        for location in locations
        if (body := body_of(location)) is None or body.digest not in known.get(location, {}).get(minor, [])
    ]
