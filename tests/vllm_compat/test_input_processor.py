"""Budgets, salts and refusals at vLLM's own input processor, without an engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_prune.budget.errors import BudgetError
from vllm_prune.budget.kv import KEY, KvSpec
from vllm_prune.config.tenants import Tenant
from vllm_prune.policy import Decision
from vllm_prune.request import CURRENT, RequestContext, context_of_engine_request
from vllm_prune.visual.frontend.processor import MAX_OUTPUT
from vllm_prune.vllm_compat.base_renderer import patch_base_renderer
from vllm_prune.vllm_compat.input_processor import patch_input_processor
from vllm_prune.vllm_compat.request_owner import CONTEXT

DEMO = Path(__file__).parents[2] / "benchmarks" / "demo_model" / "checkpoint"
TASKS = ("generate",)
SPEC = KvSpec("snapkv", keep="0.5")
WIRE = SPEC.wire()


@pytest.fixture(scope="module")
def serving() -> Iterator[Any]:
    """An input processor as a server has it."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.input_processor import InputProcessor

    import vllm_prune

    patch_base_renderer()
    patch_input_processor()
    vllm_prune.register()
    processor = InputProcessor(EngineArgs(model=str(DEMO), enforce_eager=True).create_engine_config())
    processor.renderer.vllm_prune_serves_http = True
    yield processor
    processor.renderer.shutdown()


@pytest.fixture
def offline(serving: Any) -> Iterator[Any]:
    """The same without a server."""
    serving.renderer.vllm_prune_serves_http = False
    yield serving
    serving.renderer.vllm_prune_serves_http = True


@pytest.fixture(autouse=True)
def nobody() -> Iterator[None]:
    """No request is at hand."""
    token = CURRENT.set(None)
    yield
    CURRENT.reset(token)


def sampling(**more: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(max_tokens=4, **more)


def tokens(**more: Any) -> dict[str, Any]:
    return {"type": "token", "prompt_token_ids": [1, 2, 3], **more}


def request_of(processor: Any, params: Any, prompt: Any = None, name: str = "r") -> Any:
    return processor.process_inputs(name, tokens() if prompt is None else prompt, params, TASKS)


def test_the_decided_budget_is_attached_to_a_copy(serving: Any) -> None:
    context = RequestContext(decision=Decision(None, kv=SPEC))
    CURRENT.set(context)
    xargs = {"other": 1}
    params = sampling(extra_args=xargs, n=2)
    for name in ("first", "second"):
        request = request_of(serving, params, name=name)
        attached = KvSpec.of(request.sampling_params.extra_args)
        assert attached is not None
        assert (attached.strategy, attached.keep, attached.ticket) == ("snapkv", "0.5", context.id)
        assert request.sampling_params.extra_args["other"] == 1
        assert request.sampling_params.n == 2
        assert context_of_engine_request(name) is context
    assert xargs == {"other": 1}
    assert params.extra_args is xargs


def test_without_a_kv_budget_nothing_is_attached(serving: Any) -> None:
    for context in (None, RequestContext(), RequestContext(decision=Decision(None))):
        CURRENT.set(context)
        assert request_of(serving, sampling()).sampling_params.extra_args is None


def test_a_stream_finds_its_context_in_the_prompt(serving: Any) -> None:
    context = RequestContext(tenant=Tenant(name="alpha"), decision=Decision(None, kv=SPEC))
    request = request_of(serving, sampling(), tokens(**{CONTEXT: context}))
    assert json.loads(request.sampling_params.extra_args[KEY])["ticket"] == context.id
    assert request.cache_salt is not None


@pytest.mark.parametrize("wire", [WIRE, "{", "", None, 5, ["x"], {"strategy": "snapkv"}])
def test_clients_do_not_set_our_key(serving: Any, wire: Any) -> None:
    from vllm.exceptions import VLLMValidationError

    for context in (None, RequestContext(decision=Decision(None, kv=SPEC))):
        CURRENT.set(context)
        with pytest.raises(VLLMValidationError, match="is set by the server") as caught:
            request_of(serving, sampling(extra_args={KEY: wire}))
        assert caught.value.parameter == "vllm_xargs"
    assert context is not None
    assert context.rejected == "internal_key"


def test_an_operators_own_budget_is_checked_in_its_process(offline: Any) -> None:
    request = request_of(offline, sampling(extra_args={KEY: WIRE}))
    assert request.sampling_params.extra_args == {KEY: WIRE}
    for wire in ("{", WIRE.replace("0.5", "7"), WIRE.replace("snapkv", "no_such"), 5):
        with pytest.raises(BudgetError, match="malformed at"):
            request_of(offline, sampling(extra_args={KEY: wire}))


def test_prefix_caches_are_the_tenants(serving: Any) -> None:
    def salt(tenant: Tenant | None, **prompt: Any) -> str | None:
        CURRENT.set(RequestContext(tenant=tenant))
        found: str | None = request_of(serving, sampling(), tokens(**prompt)).cache_salt
        return found

    alpha, beta = Tenant(name="alpha"), Tenant(name="beta")
    salts = [salt(tenant, **prompt) for tenant in (alpha, beta) for prompt in ({}, {"cache_salt": "mine"})]
    assert len(set(salts)) == 4
    assert salt(alpha) == salts[0]
    # A client cannot name another tenant's salt.
    assert salt(beta, cache_salt=salts[0]) not in salts
    assert salt(None) is None
    assert salt(None, cache_salt="mine") == "mine"


async def test_a_prompt_that_is_prepared_in_a_thread_knows_its_request(serving: Any) -> None:
    context = RequestContext(tenant=Tenant(name="alpha"), decision=Decision(None, kv=SPEC))
    CURRENT.set(context)
    request = await serving.process_inputs_async("raw", {"prompt_token_ids": [1, 2]}, sampling(), TASKS)
    assert json.loads(request.sampling_params.extra_args[KEY])["ticket"] == context.id
    assert request.cache_salt is not None
    assert context_of_engine_request("raw") is context


def test_what_the_processor_reports_reaches_the_request(serving: Any) -> None:
    context = RequestContext()
    CURRENT.set(context)
    item = {"modality": "image", "strategy": "none", "input_tokens": 4, "kept_tokens": 4, "capped": False}
    prompt = tokens(vllm_prune_report=[item], **{MAX_OUTPUT: 2})
    params = sampling()
    assert request_of(serving, params, prompt).sampling_params.max_tokens == 2
    assert params.max_tokens == 4
    assert context.items == [item]
    # Only once.
    assert request_of(serving, params, prompt).sampling_params.max_tokens == 4
    assert context.items == [item]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


@given(
    st.dictionaries(st.sampled_from([KEY, "vllm_prune", "pruning", "kv_transfer_params"]) | st.text(max_size=8), JSON)
)
def test_no_extra_arguments_of_a_client_get_ours_to_the_engine(serving: Any, extra: dict[str, Any]) -> None:
    from vllm.exceptions import VLLMValidationError

    try:
        request = request_of(serving, sampling(extra_args=extra))
    except VLLMValidationError:
        return
    assert KEY not in (request.sampling_params.extra_args or {})
