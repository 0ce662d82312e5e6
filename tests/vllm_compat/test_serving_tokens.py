"""Processed media from clients that the operator trusts: bound to tenant and content, and readable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_prune.config.tenants import Tenant
from vllm_prune.request import CURRENT, RequestContext
from vllm_prune.visual.item_plan import ItemPlan
from vllm_prune.vllm_compat import base_renderer, serving_tokens

TRUSTING = SimpleNamespace(model_config=SimpleNamespace(multimodal_config=SimpleNamespace(enable_mm_embeds=True)))
WARY = SimpleNamespace(model_config=SimpleNamespace(multimodal_config=SimpleNamespace(enable_mm_embeds=False)))
TEXT_ONLY = SimpleNamespace(model_config=SimpleNamespace(multimodal_config=None))
ALPHA, BETA = Tenant(name="alpha"), Tenant(name="beta")
PLAN = ItemPlan("uniform", "{}", 2, 7)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key is known yet."""
    monkeypatch.setattr(serving_tokens, "UUIDS", base_renderer.MediaUuids())
    token = CURRENT.set(None)
    yield
    CURRENT.reset(token)


def item(value: int = 0, plan: torch.Tensor | None = None) -> str:
    """An item as `/render` gives it."""
    from vllm.entrypoints.scale_out.token_in_token_out.mm_serde import encode_mm_kwargs_item
    from vllm.multimodal.inputs import MultiModalBatchedField, MultiModalFieldElem, MultiModalKwargsItem

    fields = {"pixel_values": torch.full((2, 2), value)}
    if plan is not None:
        fields["image_prune"] = plan
    elements = {name: MultiModalFieldElem(data=data, field=MultiModalBatchedField()) for name, data in fields.items()}
    encoded: str = encode_mm_kwargs_item(MultiModalKwargsItem(elements))
    return encoded


def keys(*sent: tuple[str, str | None], tenant: Tenant | None = ALPHA, serving: Any = TRUSTING) -> list[str]:
    """What becomes of items' keys; `sent` has key and item."""
    from vllm.entrypoints.scale_out.token_in_token_out.protocol import MultiModalFeatures

    CURRENT.set(RequestContext(tenant=tenant))
    features = MultiModalFeatures(
        mm_hashes={"image": [name for name, _ in sent]},
        mm_placeholders={"image": [{"offset": 2 * i, "length": 2} for i in range(len(sent))]},
        kwargs_data={"image": [data for _, data in sent]},
    )
    serving_tokens._check_features(serving, features)
    found: list[str] = features.mm_hashes["image"]
    return found


def test_a_key_stands_for_one_content_of_one_tenant() -> None:
    from vllm.exceptions import VLLMValidationError

    (first,) = keys(("a", item(1)))
    assert first.startswith("uuid:")
    assert keys(("a", item(1)), ("a", None)) == [first, first]
    assert keys(("a", item(1)), tenant=BETA) != [first]
    with pytest.raises(VLLMValidationError, match="already stands for another"):
        keys(("a", item(2)))
    with pytest.raises(VLLMValidationError, match="already stands for another"):
        keys(("b", item(1)), ("b", item(2)))


def test_a_key_alone_names_what_the_server_has_processed() -> None:
    keys(("a", item(1)))
    assert keys(("a", None), tenant=BETA) == ["a"]


def test_servers_that_trust_nobody_refuse_even_keys() -> None:
    from vllm.exceptions import VLLMValidationError

    for serving in (WARY, TEXT_ONLY):
        with pytest.raises(VLLMValidationError, match="--enable-mm-embeds") as caught:
            keys(("a", None), serving=serving)
        assert caught.value.parameter == "features"


def test_plans_that_the_engine_could_not_read_are_refused() -> None:
    from vllm.exceptions import VLLMValidationError

    assert keys(("good", item(1, PLAN.encode())))
    assert keys(("off", item(1, torch.empty(0, dtype=torch.uint8))))
    wrong = [replace(PLAN, strategy="none such"), replace(PLAN, options="{"), replace(PLAN, options='{"no": 1}'),
             replace(PLAN, count="x"), replace(PLAN, count=None)]  # type: ignore[arg-type]  # fmt: skip
    bad = [
        *(plan.encode().numpy().tobytes() for plan in wrong),
        b"{",
        b"[]",
        b"5",
        b"{}",
        b"[" * 50_000,
        b"\xff",
        PLAN.encode().numpy().tobytes() + b"x",
    ]
    rows = [torch.frombuffer(bytearray(text), dtype=torch.uint8) for text in bad]
    for row in (*rows, torch.tensor([1e9]), torch.tensor([-1])):
        with pytest.raises(VLLMValidationError, match="plan of an item is malformed"):
            keys(("bad", item(1, row)))
    with pytest.raises(VLLMValidationError, match="does not fit"):
        keys(("long", item(1, ItemPlan("uniform", "{}", 3, 7).encode())))
