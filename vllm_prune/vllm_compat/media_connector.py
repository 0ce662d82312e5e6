"""Registration of the server's media connector in vLLM's registry.

The server depends on the plugin, never the other way round; what the plugin needs of the server it looks up among the
entry points of the group `vllm_prune.server`.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any

from .signatures import load

MEDIA_CONNECTOR = "vllm_prune"
"""Value of `VLLM_MEDIA_CONNECTOR` that selects our connector."""

SERVER_GROUP = "vllm_prune.server"


def load_server_object(name: str) -> Any:
    """An object that the server's package offers under an entry point of the group `vllm_prune.server`.

    Raises:
        LookupError: the entry point is not installed.
        ImportError: its module cannot be imported.
    """
    for entry in entry_points(group=SERVER_GROUP, name=name):
        return entry.load()
    raise LookupError(f"no entry point {name!r} in group {SERVER_GROUP!r}: install vllm-prune into this environment")


def register_media_connector() -> None:
    """Offer our media connector under its name; vLLM uses the one that `VLLM_MEDIA_CONNECTOR` names."""
    registry = load("MEDIA_CONNECTOR_REGISTRY")
    registry.register(MEDIA_CONNECTOR)(_media_connector)


def _media_connector(*args: Any, **kwargs: Any) -> Any:
    # The registry calls what it holds. Importing the server with every plugin would be too early.
    return _connector_class()(*args, **kwargs)


@cache
def _connector_class() -> Any:
    """Looked up once: entry points are read from the files of all installed packages, and vLLM asks per request."""
    return load_server_object("media_connector")


def media_connector_registered() -> bool:
    """Whether our media connector is registered in this process."""
    registry = load("MEDIA_CONNECTOR_REGISTRY")
    return registry.name2class.get(MEDIA_CONNECTOR) is _media_connector
