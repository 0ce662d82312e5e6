"""The authors' files, and how one of them is loaded without the packages around it."""

from __future__ import annotations

import builtins
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Source:
    """A file of a public repository.

    Attributes:
        repository: its name, without its owner.
        commit: that the figures were measured at.
        licence: of the repository.
        file: path in it.
        blob: git's object id of the file at that commit.
        until: where reading ends, for a file that is no Python behind what is called.
    """

    repository: str
    commit: str
    licence: str
    file: str
    blob: str
    until: str | None = None

    def read(self, directory: Path) -> str:
        """The file's text.

        Args:
            directory: holds a checkout of the repository under its name.

        Raises:
            FileNotFoundError: no such checkout.
            ValueError: the file is not the one at the commit.
        """
        path = self.path(directory)
        content = path.read_bytes()
        if blob_of(content) != self.blob:
            raise ValueError(f"{path} is not what it was at {self.commit}; check that commit of {self.repository} out")
        text = content.decode()
        return text if self.until is None else text[: text.index(self.until)]

    def path(self, directory: Path) -> Path:
        """Where the file lies."""
        return directory / self.repository / self.file


def blob_of(content: bytes) -> str:
    """Git's object id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class _MissingType(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Missing


class Missing(metaclass=_MissingType):
    """Stands for whatever cannot be imported: a base class, a decorator with or without arguments, a module."""

    def __new__(cls, *positional: Any, **named: Any) -> Any:
        """The decorated function or class itself, else an object that decorates."""
        if cls is not Missing or not (len(positional) == 1 and not named and callable(positional[0])):
            return super().__new__(cls)
        return positional[0]

    def __init__(self, *positional: Any, **named: Any) -> None:
        """Take anything."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Missing

    def __call__(self, *positional: Any, **named: Any) -> Any:
        """Decorate, or be called for nothing."""
        return positional[0] if len(positional) == 1 and not named else None


class _Module:
    """What an import gives: names from elsewhere first, then those of the real module, then `Missing`."""

    def __init__(self, module: Any, names: Mapping[str, Any]) -> None:
        self._module, self._names = module, names

    def __getattr__(self, name: str) -> Any:
        return self._names[name] if name in self._names else getattr(self._module, name, Missing)


def load(text: str, file: Path, names: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run a file of the authors and return what it defines.

    Args:
        text: of the file. It runs as any module does that is imported, with all that this may do.
        file: where it lies, for tools that look their own source up.
        names: what imports of these names give, wherever the file imports them from.
    """
    replaced = names or {}

    def importer(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        module: Any = Missing
        if level == 0:
            try:
                module = builtins.__import__(name, globals, locals, tuple(fromlist or ()), 0)
            except ImportError:
                module = Missing
        whole = all(hasattr(module, part) and part not in replaced for part in fromlist or ())
        return module if module is not Missing and whole else _Module(module, replaced)

    namespace: dict[str, Any] = {
        "__name__": "authors",
        "__builtins__": {**vars(builtins), "__import__": importer},
    }
    exec(compile(text, str(file), "exec"), namespace)
    return namespace
