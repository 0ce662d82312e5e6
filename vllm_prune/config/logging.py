"""The section `logging`: how log lines look, and whether each request gets one."""

from __future__ import annotations

import os
from typing import Literal, cast, get_args

from .section import Section

ENV = "VLLM_PRUNE_LOG_FORMAT"
Format = Literal["text", "json"]


class Logging(Section):
    """How the server logs.

    Attributes:
        format: "text" as vLLM writes, or "json", one object per line; `VLLM_PRUNE_LOG_FORMAT` comes before it.
        requests: one line per request, without prompts; by default with "json" only.
    """

    format: Format = "text"
    requests: bool | None = None

    def resolved_format(self) -> Format:
        """The format in force.

        Raises:
            ValueError: `VLLM_PRUNE_LOG_FORMAT` is neither text nor json.
        """
        variable = os.environ.get(ENV)
        if not variable:
            return self.format
        if variable not in get_args(Format):
            raise ValueError(f"{ENV}={variable!r} is unknown; set it to text or json")
        return cast(Format, variable)

    def lines(self) -> bool:
        """Whether each request gets a line."""
        return self.resolved_format() == "json" if self.requests is None else self.requests
