"""The requests of the documentation, run as written against a real server; their answers are as printed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.servers import Server, free_port

from ..docs.pages import WITH_EXAMPLES, Example, codes, examples, name
from ..docs.sessions import outputs
from .media_files import user

REQUESTS = {page: [one for one in examples(page, "bash", "python") if not one.not_run] for page in WITH_EXAMPLES}


def session(page: Path, language: str) -> list[Example]:
    """The blocks of one page that talk to a server, in order; later ones use names of earlier ones."""
    return [one for one in REQUESTS[page] if one.language == language and one.is_request]


def pages(language: str) -> list[Any]:
    return [pytest.param(page, id=name(page)) for page in WITH_EXAMPLES if session(page, language)]


def within(documented: Any, actual: Any) -> bool:
    """Whether all that the page shows is in the answer; lists have the same length."""
    if isinstance(documented, dict):
        return isinstance(actual, dict) and all(
            key in actual and within(value, actual[key]) for key, value in documented.items()
        )
    if isinstance(documented, list):
        return isinstance(actual, list) and len(documented) == len(actual) and all(map(within, documented, actual))
    return bool(documented == actual)


@pytest.mark.parametrize("page", pages("python"))
def test_python_requests(server: Server, page: Path) -> None:
    for block, printed in outputs(session(page, "python"), server.url):
        if block.output is not None:
            assert printed.strip() == block.output.strip(), block.place


@pytest.mark.parametrize("page", pages("bash"))
def test_bash_requests(server: Server, page: Path) -> None:
    for block, printed in outputs(session(page, "bash"), server.url):
        if block.output is not None:
            assert within(json.loads(block.output), json.loads(printed)), f"{block.place}: {printed}"


def test_pages_have_requests_of_both_kinds() -> None:
    assert pages("python")
    assert pages("bash")


def test_a_wrong_answer_is_noticed() -> None:
    assert within({"usage": {"kept": 1}}, {"usage": {"kept": 1, "input": 2}})
    assert not within({"usage": {"kept": 1}}, {"usage": {"kept": 2}})
    assert not within({"choices": [{}, {}]}, {"choices": [{}]})


OF_LAYER_GROUPS = {"vllm_prune_kv_group_blocks_freed"}
"""Exported by servers with groups of layers, once one of them has given blocks back."""


def test_metrics_of_the_documentation_are_exported(server: Server) -> None:
    # One that fails is timed, too; the series of downloads begins with the first.
    unreachable = {"type": "image_url", "image_url": {"url": f"http://localhost:{free_port()}/a.png"}}
    body = {"model": server.model_name, "messages": user([unreachable])}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).status_code == 400
    families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics", timeout=60).text)
    exported = {family.name for family in families}
    named = {code for page in WITH_EXAMPLES for code in codes(page) if re.fullmatch(r"vllm_prune_\w+", code)}
    assert len(named) > 10
    documented = {one.removesuffix("_total") for one in named}
    assert documented - OF_LAYER_GROUPS <= exported
    assert {one for one in exported if one.startswith("vllm_prune_")} <= documented
