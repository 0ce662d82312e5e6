"""The section `playground`: the page on which budgets are chosen by looking."""

from __future__ import annotations

from .section import Section


class Playground(Section):
    """Whether the page is there.

    Attributes:
        enabled: `GET /playground` answers; with False it is 404, and nothing of the page is loaded.
    """

    enabled: bool = True
