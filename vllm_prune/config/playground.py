"""The section `playground`: whether the page on which budgets are chosen by looking is served."""

from __future__ import annotations

from .section import Section


class Playground(Section):
    """The page at `/playground`, on which budgets are chosen by looking.

    Attributes:
        enabled: `GET /playground` answers; with False it is 404, and nothing of the page is loaded.
    """

    enabled: bool = True
