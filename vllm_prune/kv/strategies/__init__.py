"""The KV catalogue's one door: strategies register themselves, callers ask by name."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module

from .base import KvStrategy

__all__ = ["KvStrategy", "create", "names", "register", "strategy_class"]

_REGISTRY: dict[str, type[KvStrategy]] = {}
_complete = False


def register(cls: type[KvStrategy]) -> type[KvStrategy]:
    """Class decorator: add a strategy to the catalogue under its `name`.

    Raises:
        ValueError: another class already has that name.
    """
    known = _REGISTRY.setdefault(cls.name, cls)
    if known.__qualname__ != cls.__qualname__:
        raise ValueError(f"KV strategy name {cls.name!r} is taken by {known.__qualname__}")
    return cls


def names() -> tuple[str, ...]:
    """Catalogue names, alphabetical."""
    _discover()
    return tuple(sorted(_REGISTRY))


def strategy_class(name: str) -> type[KvStrategy]:
    """The class registered under `name`.

    Raises:
        KeyError: unknown name.
    """
    _discover()
    return _REGISTRY[name]


def create(name: str, options: Mapping[str, object] | None = None) -> KvStrategy:
    """An instance with validated options.

    Raises:
        KeyError: unknown name.
        pydantic.ValidationError: options that the strategy does not accept.
    """
    cls = strategy_class(name)
    return cls(cls.Options.model_validate(dict(options or {})))


def _discover() -> None:
    global _complete
    if not _complete:
        for module in pkgutil.iter_modules(__path__):
            import_module(f"{__name__}.{module.name}")
        _complete = True
