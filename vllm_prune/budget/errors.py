"""Why a budget cannot be honoured: the error that becomes a 400, and the findings behind it."""

from __future__ import annotations


class BudgetError(ValueError):
    """A budget that cannot be honoured. `param` names the request field to change."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param
