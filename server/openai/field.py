"""Where a request says its budget: the field `pruning`, `vllm_xargs.pruning`, or `MODEL@PRESET`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_prune.budget.errors import BudgetError
from vllm_prune.policy import BOTH, XARG, field_of_xargs


@dataclass(frozen=True)
class RequestedBudget:
    """What a request says.

    Attributes:
        field: the `pruning` value, None for the server's default.
        preset: preset named in the model, None where there is none.
        rewritten: the document was changed, as vLLM must not see what it held.
    """

    field: object = None
    preset: str | None = None
    rewritten: bool = False

    @property
    def present(self) -> bool:
        """Whether the request says anything."""
        return self.field is not None or self.preset is not None


def take_budget(document: dict[str, Any], is_served: Callable[[str], bool]) -> RequestedBudget:
    """Read the budget of a request, and take out of its document what vLLM would stumble over.

    Args:
        document: the JSON body. `pruning` stays, as vLLM ignores fields that it does not know.
        is_served: whether a model of exactly that name is served.

    Raises:
        BudgetError: `pruning` and `vllm_xargs.pruning` at once, or the second is no text.
    """
    field, rewritten = document.get(XARG), False
    xargs = document.get("vllm_xargs")
    if isinstance(xargs, dict) and XARG in xargs:
        value = xargs.pop(XARG)
        rewritten = True
        if not xargs:
            del document["vllm_xargs"]
        if field is not None and value is not None:
            raise BudgetError(BOTH, "vllm_xargs.pruning")
        if value is not None:
            field = field_of_xargs(value)
    preset = None
    model = document.get("model")
    if isinstance(model, str) and "@" in model and not is_served(model):
        document["model"], _, preset = model.rpartition("@")
        rewritten = True
    return RequestedBudget(field, preset, rewritten)
