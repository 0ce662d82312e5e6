"""No 500 and no words of a library's for what a client has sent; without an engine."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response
from vllm.v1.engine.exceptions import EngineDeadError

from vllm_prune.config.admission import Admission
from vllm_prune.config.load import PruneConfig
from vllm_prune.request import current

from .application import MODEL, Served

BODY = {"model": MODEL, "messages": []}
PYDANTIC = "4 validation errors for ValidatorIterator\n0.Text\n  Input should be a valid dictionary [type=dict_type, x]"
INTERNAL = "'NoneType' object has no attribute 'split'"


def raising(error: Exception, reached_engine: bool = False) -> Any:
    async def answer(request: Any, parsed: Any) -> Response:
        context = current()
        assert context is not None
        if reached_engine:
            context.add_engine_request("chatcmpl-x")
        raise error

    return answer


def saying(status: int, message: str, kind: str = "InternalServerError") -> Any:
    async def answer(request: Any, parsed: Any) -> Response:
        return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status_code=status)

    return answer


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/collective_rpc"])
@pytest.mark.parametrize("error", [AttributeError(INTERNAL), KeyError("x"), RuntimeError("a b"), RecursionError()])
def test_faults_in_the_content_are_400(monkeypatch: pytest.MonkeyPatch, path: str, error: Exception) -> None:
    answer = Served(PruneConfig(), raising(error), monkeypatch).post(path, BODY)
    assert answer.status_code == 400
    assert "could not be prepared" in answer.json()["error"]["message"]
    assert "attribute" not in answer.text


@pytest.mark.parametrize("step", ["decide", "admit"])
def test_faults_of_our_own_steps_are_400_without_their_text(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AttributeError(INTERNAL)

    config = PruneConfig(admission=Admission(max_inflight_visual_tokens=100))
    served = Served(config, raising(OSError("not reached")), monkeypatch)
    module, name = {"decide": ("decide", "decide"), "admit": ("admit", "demand_of")}[step]
    monkeypatch.setattr(f"vllm_prune_server.middleware.{module}.{name}", fail)
    answer = served.post("/v1/chat/completions", BODY)
    assert answer.status_code == 400
    assert "attribute" not in answer.text


def test_faults_of_the_server_stay_500(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, reached in ((AttributeError(INTERNAL), True), (EngineDeadError(), False), (OSError("disk"), False)):
        served = Served(PruneConfig(), raising(error, reached), monkeypatch)
        assert served.post("/v1/chat/completions", BODY).status_code == 500


@pytest.mark.parametrize("status", [400, 500])
def test_words_of_libraries_do_not_reach_clients(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    for text in (INTERNAL, PYDANTIC, "argument of type 'X' is not iterable"):
        answer = Served(PruneConfig(), saying(status, text), monkeypatch).post("/v1/messages", BODY)
        assert answer.status_code == 400
        assert answer.json()["type"] == "error"
        assert text not in answer.text
        assert ("valid dictionary" in answer.text) == (text == PYDANTIC)


def test_messages_that_help_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    for status in (400, 404, 501):
        answer = Served(PruneConfig(), saying(status, "give a model"), monkeypatch).post("/v1/completions", BODY)
        assert answer.status_code == status
        assert answer.json()["error"]["message"] == "give a model"
    answer = Served(PruneConfig(), saying(500, "an image is too odd"), monkeypatch).post("/v1/completions", BODY)
    assert answer.status_code == 400
    assert "an image is too odd" in answer.json()["error"]["message"]


def test_what_the_engine_says_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(PruneConfig(), saying(500, "dead"), monkeypatch)
    served.state.lifecycle.died = True
    assert served.post("/v1/completions", BODY).status_code == 500


@pytest.mark.parametrize("status", [400, 500])
def test_warnings_quote_nothing_of_a_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    logger = "vllm.vllm_prune"
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    text = "bad_words cannot hold ['a secret NoneType', '']"
    with caplog.at_level(logging.WARNING, logger):
        Served(PruneConfig(), saying(status, text), monkeypatch).post("/v1/chat/completions", BODY)
    assert str(status) in caplog.text
    assert "secret" not in caplog.text
