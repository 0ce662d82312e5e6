"""vLLM's handler of `RequestValidationError`, replaced before vLLM registers it with its application."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .signatures import holder


def replace_validation_handler(handler: Callable[..., Any]) -> None:
    """Have vLLM register `handler(req, exc)`; to be called before `init_exception_handler`, as endpoint plugins are."""
    module: Any = holder("validation_exception_handler")
    module.validation_exception_handler = handler
