"""Media uuids and processor options in front of vLLM's own renderer and caches, without an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vllm_prune.budget.canonical import KEY, VisualSpec
from vllm_prune.config.tenants import Tenant
from vllm_prune.policy import Decision
from vllm_prune.request import CURRENT, RequestContext
from vllm_prune.vllm_compat import base_renderer
from vllm_prune.vllm_compat.base_renderer import patch_base_renderer
from vllm_prune.vllm_compat.request_owner import CONTEXT

DEMO = Path(__file__).parents[2] / "benchmarks" / "demo_model" / "checkpoint"
SETTINGS = {
    "lru": {},
    "shm": {"mm_processor_cache_type": "shm"},
    "no processor cache": {"mm_processor_cache_gb": 0},
    "no prefix cache": {"enable_prefix_caching": False},
    "no cache": {"mm_processor_cache_gb": 0, "enable_prefix_caching": False},
}
ALPHA, BETA = Tenant(name="alpha"), Tenant(name="beta")
HALF = VisualSpec.from_wire({"keep": 0.5, "strategy": "uniform"})


def renderer_of(**arguments: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.renderers import renderer_from_config

    import vllm_prune

    patch_base_renderer()
    vllm_prune.register()
    config = EngineArgs(model=str(DEMO), enforce_eager=True, **arguments).create_engine_config()
    renderer = renderer_from_config(config)
    renderer.vllm_prune_serves_http = True
    return renderer


@pytest.fixture(scope="module", params=list(SETTINGS))
def caching(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A renderer under each cache setting."""
    renderer = renderer_of(**SETTINGS[request.param])
    yield renderer
    renderer.shutdown()


@pytest.fixture(scope="module")
def renderer() -> Iterator[Any]:
    """A renderer as a server has it."""
    renderer = renderer_of()
    yield renderer
    renderer.shutdown()


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No uuid is known yet, and no request is at hand."""
    monkeypatch.setattr(base_renderer, "UUIDS", base_renderer.MediaUuids())
    token = CURRENT.set(None)
    yield
    CURRENT.reset(token)


def picture(seed: int, side: int = 56) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8))


async def prepare(
    renderer: Any,
    items: Sequence[tuple[Image.Image | None, Any]],
    tenant: Tenant | None = None,
    spec: VisualSpec | None = None,
    **options: Any,
) -> Any:
    """Prepare a prompt of pictures with uuids as the server's routes do."""
    CURRENT.set(RequestContext(tenant=tenant, decision=Decision(spec)))
    token = renderer.model_config.hf_config.image_token_id
    prompt = {
        "prompt_token_ids": [token] * len(items),
        "multi_modal_data": {"image": [image for image, _ in items]},
        "multi_modal_uuids": {"image": [uuid for _, uuid in items]},
        "mm_processor_kwargs": options,
    }
    return await renderer._process_tokens_async(prompt)


async def refused(*arguments: Any, **more: Any) -> str:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError) as caught:
        await prepare(*arguments, **more)
    assert caught.value.parameter in ("uuid", "mm_processor_kwargs")
    return str(caught.value)


@pytest.mark.slow
async def test_one_uuid_is_one_content_whatever_caches_there_are(caching: Any) -> None:
    first = await prepare(caching, [(picture(1), "a"), (picture(1), "a"), (picture(2), "b")])
    keys = first["mm_hashes"]["image"]
    assert keys[0] == keys[1] != keys[2]
    assert all(key.startswith("uuid:") for key in keys)
    # In one request, and in a later one.
    assert "'c' of image 1 already stands" in await refused(caching, [(picture(1), "c"), (picture(2), "c")])
    assert "'a' of image 0 already stands" in await refused(caching, [(picture(2, 112), "a")])
    again = await prepare(caching, [(picture(1), "a")])
    assert again["mm_hashes"]["image"] == keys[:1]


@pytest.mark.slow
async def test_tenants_do_not_meet(caching: Any) -> None:
    image = picture(3)
    keys = [(await prepare(caching, [(image, "a")], tenant))["mm_hashes"]["image"][0] for tenant in (ALPHA, BETA, None)]
    assert len(set(keys)) == 3
    text = await refused(caching, [(None, "only-alpha's")], BETA)
    assert '"only-alpha\'s"' in text
    # Not even with the key that vLLM's caches hold the other one's item under.
    assert "does not know it" in await refused(caching, [(None, keys[0])], BETA)
    other = await prepare(caching, [(picture(4, 112), "mine")], ALPHA)
    mine = await prepare(caching, [(picture(5), "mine")], BETA)
    assert len(other["prompt_token_ids"]) == 16
    assert len(mine["prompt_token_ids"]) == 4


@pytest.mark.slow
async def test_a_uuid_alone_works_where_the_item_is_kept(caching: Any) -> None:
    sent = await prepare(caching, [(picture(6), "a")], ALPHA)
    if caching._mm_processor_cache is None:
        text = await refused(caching, [(None, "a")], ALPHA)
        assert "keeps no such media" in text
    else:
        alone = await prepare(caching, [(None, "a")], ALPHA)
        assert alone["mm_hashes"] == sent["mm_hashes"]
        assert alone["prompt_token_ids"] == sent["prompt_token_ids"]
        text = await refused(caching, [(None, "a")], ALPHA, HALF)
        assert "does not hold it" in text
        assert "keep 0.5 (uniform)" in text
        # Sent again under the budget, it is kept for both.
        pruned = await prepare(caching, [(picture(6), "a")], ALPHA, HALF)
        assert len(pruned["prompt_token_ids"]) == 2
        assert (await prepare(caching, [(None, "a")], ALPHA, HALF))["mm_hashes"] == pruned["mm_hashes"]
        text = await refused(caching, [(None, "b")], ALPHA, HALF)
    assert "send the item again" in text


async def test_an_item_without_uuid_keeps_vllms_key(renderer: Any) -> None:
    from vllm.multimodal.hasher import MultiModalHasher

    image = picture(7)
    key = (await prepare(renderer, [(image, None)]))["mm_hashes"]["image"][0]
    algorithm = renderer.model_config.multimodal_config.mm_hasher_algorithm
    assert key == MultiModalHasher.hash_kwargs(algorithm, model_id=renderer.model_config.model, image=image)
    # A client that sends that hash as a uuid gets another key.
    assert (await prepare(renderer, [(picture(8), key)]))["mm_hashes"]["image"] != [key]


@pytest.mark.parametrize("uuid", [7, ["a"], {"a": 1}, 1.5, True])
async def test_a_uuid_is_text(renderer: Any, uuid: Any) -> None:
    assert "is text" in await refused(renderer, [(picture(9), uuid)])


@pytest.mark.parametrize("uuid", ["", "\ud800", "\0", "x" * 100_000, "renderer0-mm-1-image-0", "a\nb"])
async def test_any_text_is_a_uuid(renderer: Any, uuid: str) -> None:
    assert "send the item again" in await refused(renderer, [(None, uuid)])
    key = (await prepare(renderer, [(picture(10), uuid)]))["mm_hashes"]["image"][0]
    assert (await prepare(renderer, [(None, uuid)]))["mm_hashes"]["image"] == [key]


async def test_only_the_decided_budget_reaches_the_processor(renderer: Any) -> None:
    for wire in ({"keep": 0.02}, HALF.wire(), {}, None, "x"):
        assert "set by the server" in await refused(renderer, [(picture(11), None)], **{KEY: wire})
    other = VisualSpec.from_wire({"keep": 0.25, "strategy": "uniform"})
    assert "set by the server" in await refused(renderer, [(picture(11), None)], spec=HALF, **{KEY: other.wire()})
    pruned = await prepare(renderer, [(picture(11), None)], spec=HALF, **{KEY: HALF.wire()})
    assert len(pruned["prompt_token_ids"]) == 2
    # A route that does not pass the budget on gets it here.
    assert (await prepare(renderer, [(picture(11), None)], spec=HALF))["mm_hashes"] == pruned["mm_hashes"]
    assert len((await prepare(renderer, [(picture(11), None)]))["prompt_token_ids"]) == 4


async def test_the_prompt_knows_its_request(renderer: Any) -> None:
    prepared = await prepare(renderer, [(picture(12), None)], ALPHA)
    assert prepared[CONTEXT].tenant == ALPHA


def test_an_engine_without_a_server_takes_its_callers_budget(renderer: Any) -> None:
    renderer.vllm_prune_serves_http = False
    try:
        token = renderer.model_config.hf_config.image_token_id
        options = {KEY: {"keep": 0.5, "strategy": "uniform"}}
        prompt = {"prompt_token_ids": [token], "multi_modal_data": {"image": [picture(13)]}}
        prepared = renderer._process_tokens({**prompt, "mm_processor_kwargs": options})
        assert len(prepared["prompt_token_ids"]) == 2
        assert CONTEXT not in prepared
    finally:
        renderer.vllm_prune_serves_http = True


def test_without_a_server_what_a_budget_leaves_open_is_settled(renderer: Any) -> None:
    token = renderer.model_config.hf_config.image_token_id
    renderer.vllm_prune_serves_http = False
    keys = {}
    try:
        for where in ("auto", "tower", "embed"):
            budget = {"keep": 0.5, "strategy": "uniform", "options": {"where": where}}
            prompt = {"prompt_token_ids": [token], "multi_modal_data": {"image": [picture(16)]}}
            prepared = renderer._process_tokens({**prompt, "mm_processor_kwargs": {KEY: budget}})
            keys[where] = prepared["mm_hashes"]["image"]
    finally:
        renderer.vllm_prune_serves_http = True
    assert keys["auto"] == keys["tower"] != keys["embed"]


async def test_models_without_an_adapter_are_guarded_as_well(renderer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.exceptions import VLLMValidationError
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLMultiModalProcessor

    adapted = renderer.mm_processor
    monkeypatch.setattr(renderer, "mm_processor", Qwen2_5_VLMultiModalProcessor(adapted.info, adapted.dummy_inputs))
    first = await prepare(renderer, [(picture(14), "a")], ALPHA)
    assert first["mm_hashes"]["image"][0].startswith("uuid:")
    assert "already stands" in await refused(renderer, [(picture(15), "a")], ALPHA)
    assert "does not know it" in await refused(renderer, [(None, "a")], BETA)
    assert (await prepare(renderer, [(None, "a")], ALPHA))["mm_hashes"] == first["mm_hashes"]
    renderer.clear_mm_cache()
    assert "does not hold it" in await refused(renderer, [(None, "a")], ALPHA)
    with pytest.raises(VLLMValidationError) as caught:
        await prepare(renderer, [(picture(14), None)], spec=HALF)
    assert caught.value.parameter == "pruning.visual"
