"""The operators that a step of an engine runs, those of a replayed graph (`tests.emulated_graphs`) among them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from .engines import runner_of


class Operators(TorchDispatchMode):
    """Names of the operators that run, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@contextmanager
def decode_steps(llm: Any) -> Iterator[list[list[str]]]:
    """The operators of each decode step, sampling included."""
    steps: list[list[str]] = []
    runner, kept = runner_of(llm), {}

    def watched(name: str) -> Any:
        original = getattr(runner, name)

        def run(first: Any, *args: Any, **kwargs: Any) -> Any:
            operators = Operators()
            with operators:
                result = original(first, *args, **kwargs)
            kept[name] = operators.names
            if name == "execute_model":
                kept["decodes"] = set(first.num_scheduled_tokens.values()) == {1}
            elif kept["decodes"]:
                steps.append(kept["execute_model"] + operators.names)
            return result

        return run

    for name in ("execute_model", "sample_tokens"):
        setattr(runner, name, watched(name))
    try:
        yield steps
    finally:
        del runner.execute_model, runner.sample_tokens
