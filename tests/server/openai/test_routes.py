"""Every route of vLLM's that takes a body is classified: a new one fails here until it is."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from vllm_prune_server.openai.routes import HONOURING, REFUSED, is_admitted, route_of

from ...vllm_names import make_arg_parser

# Of ours, which take no body of vLLM's.
OURS = re.compile(r"/v1/pruning/|/playground")

DECORATED = re.compile(r"""\.(?:post|put|patch|delete)\(\s*["'](/[^"']*)["']""")
ADDED = re.compile(r"""\.add_api_route\(\s*["'](/[^"']*)["'][^)]*methods=\[[^\]]*(?:POST|PUT|PATCH|DELETE)""")


def sources() -> set[str]:
    """Paths in the sources of vLLM's routers, those that need a flag, an environment or another model included."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "entrypoints"
    texts = [path.read_text(encoding="utf-8") for path in folder.rglob("*.py")]
    return {path for text in texts for pattern in (DECORATED, ADDED) for path in pattern.findall(text)}


def application(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Paths of vLLM's application with everything on that needs no other model."""
    from vllm.entrypoints.launchers.app import build_app
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(["--model", "x", "--enable-scale-out"])
    tasks = ("generate", "render", "transcription", "realtime")
    routes = build_app(args, tasks, None).routes  # type: ignore[arg-type]
    taking = [
        route for route in routes if {"POST", "PUT", "PATCH", "DELETE"} & (getattr(route, "methods", None) or set())
    ]
    return {str(getattr(route, "path", "")) for route in taking}


def test_every_route_is_classified(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = sources() | application(monkeypatch)
    # A search that finds nothing would pass for ever.
    assert {"/v1/chat/completions", "/v1/messages", "/pooling", "/v1/load_lora_adapter", "/tokenize"} <= paths
    unknown = {path for path in paths if path not in HONOURING and path not in REFUSED and not OURS.match(path)}
    assert not unknown, f"say in server/openai/routes.py what `pruning` means on {sorted(unknown)}"
    assert not set(HONOURING) & REFUSED


def test_what_works_is_admitted() -> None:
    assert all(is_admitted(path) for path in HONOURING)
    for path in ("/v1/embeddings", "/v2/embed", "/pooling", "/v1/new"):
        assert is_admitted(path)
        assert not route_of(path).honours
    for path in ("/v1/responses/x/cancel", "/detokenize", "/inference/v1/abort_requests", "/pause"):
        assert not is_admitted(path)
