"""One entry of the signature table: a name of vLLM, the parameters that we rely on, and where each version keeps it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..version import SUPPORTED, minor_of, vllm_version


class UnknownSignature(ImportError):
    """A name of vLLM is in none of its known places, or lacks a parameter that we rely on."""


@dataclass(frozen=True)
class Home:
    """A place where some version of vLLM keeps a name.

    Attributes:
        module: dotted name of the module.
        name: attribute of the module, or `Class.method`.
        parameters: those that we pass or override.
    """

    module: str
    name: str
    parameters: tuple[str, ...] = ()

    def resolve(self) -> tuple[Any, Any]:
        """The class or module that holds the name, and what the name stands for.

        Raises:
            ImportError, AttributeError: not there in the installed vLLM.
        """
        holder: Any = None
        target: Any = importlib.import_module(self.module)
        for part in self.name.split("."):
            holder, target = target, getattr(target, part)
        return holder, target

    def problem(self) -> str | None:
        """What is wrong with it in the installed vLLM, None when it is as expected."""
        try:
            _, target = self.resolve()
        except (ImportError, AttributeError) as error:
            return f"{self.module}.{self.name}: {error}"
        missing = set(self.parameters) - set(inspect.signature(target).parameters) if self.parameters else ()
        return f"{self.module}.{self.name} has no parameter {sorted(missing)}" if missing else None


@dataclass(frozen=True)
class VllmSignature:
    """One name of vLLM that we rely on.

    Attributes:
        module, name, parameters: its home in the newest supported vLLM; see `Home`.
        older: homes in older supported versions, newest first.
        since: the first supported minor version that has it, empty for all; an older vLLM is not expected to.
    """

    module: str
    name: str
    parameters: tuple[str, ...] = ()
    older: tuple[Home, ...] = ()
    since: str = ""

    @property
    def homes(self) -> tuple[Home, ...]:
        """All places where a supported vLLM has it, newest first."""
        return (Home(self.module, self.name, self.parameters), *self.older)

    def home(self) -> Home:
        """The first home that is as expected in the installed vLLM.

        Raises:
            UnknownSignature: there is none.
        """
        return _first_home(self)

    @property
    def expected(self) -> bool:
        """Whether the installed vLLM should have it."""
        installed = minor_of(vllm_version())
        return not self.since or installed not in SUPPORTED or SUPPORTED.index(installed) >= SUPPORTED.index(self.since)

    def problem(self) -> str | None:
        """What is wrong with it in the installed vLLM, None when one of its homes is as expected, or none has to be."""
        if not self.expected:
            return None
        problems = []
        for home in self.homes:
            problem = home.problem()
            if problem is None:
                return None
            problems.append(problem)
        return "; nor ".join(problems)

    def load(self) -> Any:
        """What the name stands for in the installed vLLM. Raises `UnknownSignature`."""
        return self.home().resolve()[1]

    def holder(self) -> Any:
        """The class or module that has the name as its attribute, for a caller that replaces it.

        Raises:
            UnknownSignature: it is in none of its homes.
        """
        return self.home().resolve()[0]

    def wrap(self, decorator: Callable[[Any], Any]) -> None:
        """Put `decorator(original)` in the place of what the name stands for. Raises `UnknownSignature`."""
        holder, target = self.home().resolve()
        setattr(holder, self.home().name.rpartition(".")[2], decorator(target))


@cache
def _first_home(signature: VllmSignature) -> Home:
    for home in signature.homes:
        if home.problem() is None:
            return home
    raise UnknownSignature(f"{signature.problem()}; `vllm-prune doctor` lists what this vLLM lacks")
