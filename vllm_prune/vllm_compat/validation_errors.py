"""vLLM's handler of `RequestValidationError`, replaced before vLLM registers it with its application."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

_REGISTER = "vllm.entrypoints.serve.exception_handling.register"


def replace_validation_handler(handler: Callable[..., Any]) -> None:
    """Have vLLM register `handler(req, exc)`; to be called before `init_exception_handler`, as endpoint plugins are."""
    module: Any = importlib.import_module(_REGISTER)
    module.validation_exception_handler = handler
