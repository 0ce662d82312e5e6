"""`kv.observed_requests` with `over_observed: refuse`: one request more than the workers can observe gets a 503."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
from pydantic import ValidationError

from vllm_prune.budget.kv import KvSpec
from vllm_prune.config.kv import Kv
from vllm_prune.config.load import PruneConfig
from vllm_prune.policy import Decision
from vllm_prune_server.admission.demand import Demand, PromptBound
from vllm_prune_server.admission.observed import ObservedRequests
from vllm_prune_server.openai.errors import Refusal

from .middleware.application import MODEL, Served

LOOKS = Decision(None, kv=KvSpec("snapkv", keep="0.5"))
LOOKS_AT_NONE = Decision(None, kv=KvSpec("keydiff", keep="0.5"))
CHAT = "/v1/chat/completions"


def demand(prompts: int = 1, choices: int = 1) -> Demand:
    return Demand([PromptBound(0, 10)] * prompts, choices, 10, LOOKS.kv, 100, True)


def test_only_what_looks_at_queries_counts_and_only_where_it_is_refused() -> None:
    for settings, expected in (
        (Kv(observed_requests=2, over_observed="refuse"), True),
        (Kv(observed_requests=2), False),
        (Kv(over_observed="refuse"), False),
    ):
        observed = ObservedRequests(settings, 1)
        assert observed.counts(LOOKS) is expected
        assert not observed.counts(LOOKS_AT_NONE)
        assert not observed.counts(Decision(None))
        assert not observed.counts(None)


def test_room_is_given_back_however_a_request_ends() -> None:
    observed, exits = ObservedRequests(Kv(observed_requests=3, over_observed="refuse"), 7), [ExitStack() for _ in "ab"]
    observed.enter(demand(choices=2), exits[0])
    observed.enter(demand(), exits[1])
    with pytest.raises(Refusal) as caught:
        observed.enter(demand(), ExitStack())
    assert (caught.value.status, caught.value.reason, caught.value.headers) == (
        503,
        "observed_requests",
        {"Retry-After": "7"},
    )
    exits[0].close()
    assert observed.count == 1
    observed.enter(demand(prompts=2), exits[1])
    exits[1].close()
    assert observed.count == 0


def test_a_request_that_can_never_be_observed_is_told_so() -> None:
    observed = ObservedRequests(Kv(observed_requests=3, over_observed="refuse"), 7)
    with pytest.raises(Refusal, match="this request has 4: ask for fewer") as caught:
        observed.enter(demand(2, 2), ExitStack())
    assert caught.value.status == 400
    assert caught.value.error["param"] == "pruning.kv.strategy"
    assert observed.count == 0


@pytest.mark.parametrize("section", [{"observed_requests": 0}, {"observed_requests": 1.5}, {"over_observed": "drop"}])
def test_a_wrong_setting_is_refused(section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PruneConfig.model_validate({"kv": section})


def test_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PruneConfig.model_validate({"kv": {"observed_requests": 1, "over_observed": "refuse"}})
    served = Served(config, None, monkeypatch)

    def ask(strategy: str, **more: Any) -> Any:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **more}
        return served.post(CHAT, {**body, "pruning": {"kv": {"keep": 0.5, "strategy": strategy}}})

    assert ask("snapkv").status_code == 200
    assert served.state.observed.count == 0
    assert ask("snapkv", n=2).status_code == 400
    served.state.observed.enter(demand(), ExitStack())
    answer = ask("snapkv")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    assert answer.json()["error"]["code"] == "server_overloaded"
    assert ask("keydiff").status_code == 200
