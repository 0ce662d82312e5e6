"""Paths of requests."""

from __future__ import annotations

from starlette.types import Scope

# What a probe, a scrape or a browser reads without a key. Everything else needs one where tenants are configured.
OPEN = ("/health", "/metrics", "/ping", "/version", "/load", "/playground", "/docs", "/redoc", "/openapi.json")


def path_of(scope: Scope) -> str:
    """The path below the server's root path."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def is_open(scope: Scope) -> bool:
    """Whether a path is for everybody."""
    path = path_of(scope)
    return any(path == known or path.startswith(f"{known}/") for known in OPEN)
