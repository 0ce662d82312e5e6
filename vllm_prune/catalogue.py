"""The catalogue of strategies, visual and KV. A strategy is a file, and the file's name is the strategy's name.

Names come from a listing of the folder, so that a name can be checked without torch; a module is imported when its
strategy is used first.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from .kv.strategies.base import KvStrategy
    from .visual.strategies.base import Strategy

S = TypeVar("S", bound="Strategy | KvStrategy")

LAYER_GROUPS = "layer_groups"
"""Among what a strategy needs: an engine with several groups of layers."""

SHARED_MODULES = frozenset({"base", "maths"})
"""Modules of a strategies folder that hold no strategy; neither do those whose names begin with an underscore."""


class Catalogue(Generic[S]):
    """The strategies of one folder.

    Args:
        part: "visual" or "kv", as in the `pruning` field.
    """

    def __init__(self, part: str) -> None:
        self.part = part
        self._package = f"vllm_prune.{part}.strategies"
        self._names: tuple[str, ...] | None = None
        self._classes: dict[str, type[S]] = {}

    def names(self) -> tuple[str, ...]:
        """Names, alphabetical."""
        if self._names is None:
            spec = find_spec(self._package)
            assert spec is not None
            modules = (module.name for module in pkgutil.iter_modules(spec.submodule_search_locations))
            self._names = tuple(sorted(n for n in modules if n not in SHARED_MODULES and not n.startswith("_")))
        return self._names

    def strategy_class(self, name: str) -> type[S]:
        """The class of a strategy.

        Raises:
            KeyError: unknown name.
        """
        if name not in self._classes:
            if name not in self.names():
                raise KeyError(name)
            self._classes[name] = self._load(name)
        return self._classes[name]

    def _load(self, name: str) -> type[S]:
        module = import_module(f"{self._package}.{name}")
        classes = [
            value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__
        ]
        named: list[type[S]] = [cls for cls in classes if getattr(cls, "name", None) == name]
        if len(named) != 1:
            raise TypeError(f"{module.__name__} defines {len(named)} strategies with name = {name!r}; it has to be one")
        return named[0]

    @contextmanager
    def including(self, cls: type[S]) -> Iterator[None]:
        """Offer a strategy from outside the folder, in this process, until the block ends: for tests and experiments.

        Raises:
            ValueError: another strategy has that name.
        """
        names = self.names()
        if cls.name in names:
            raise ValueError(f"strategy name {cls.name!r} is taken")
        self._names, self._classes[cls.name] = (*names, cls.name), cls
        try:
            yield
        finally:
            self._names = names
            del self._classes[cls.name]

    def create(self, name: str, options: Mapping[str, object] | None = None) -> S:
        """An instance with validated options.

        Raises:
            KeyError: unknown name.
            pydantic.ValidationError: options that the strategy does not accept.
        """
        cls = self.strategy_class(name)
        return cls(cls.Options.model_validate(dict(options or {})))

    def entries(self) -> list[dict[str, Any]]:
        """One dict per strategy: name, part, modality, needs, summary, paper, options (JSON schema)."""
        return [self._entry(self.strategy_class(name)) for name in self.names()]

    def _entry(self, cls: type[S]) -> dict[str, Any]:
        return {
            "name": cls.name,
            "part": self.part,
            "modality": sorted(cls.modalities),
            "needs": sorted({*cls.needs, *([LAYER_GROUPS] if getattr(cls, "layered", False) else [])}),
            "summary": cls.summary,
            "paper": cls.paper,
            "options": cls.Options.model_json_schema(),
        }


VISUAL: Catalogue[Strategy] = Catalogue("visual")
KV: Catalogue[KvStrategy] = Catalogue("kv")


def entries() -> list[dict[str, Any]]:
    """The whole catalogue; see `Catalogue.entries`."""
    return [*VISUAL.entries(), *KV.entries()]


def markdown(catalogue: Catalogue[Any]) -> str:
    """A part of the catalogue as a Markdown table, as it stands in the documentation."""
    lines = ["| strategy | for | what it keeps | needs | source |", "|---|---|---|---|---|"]
    for entry in catalogue.entries():
        needs = ", ".join(entry["needs"]).replace("_", " ") or "-"
        kinds = ", ".join(entry["modality"])
        lines.append(f"| `{entry['name']}` | {kinds} | {entry['summary']} | {needs} | {entry['paper']} |")
    return "\n".join(lines)
