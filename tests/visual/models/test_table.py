"""Every row of the table of families can be served by the installed vLLM, and says what its adapter does."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.model_executor.models.interfaces import is_hybrid, supports_mrope, supports_multimodal
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_prune.budget.canonical import Part
from vllm_prune.catalogue import KV, VISUAL
from vllm_prune.visual.frontend.generic_processor import GenericProcessor
from vllm_prune.visual.frontend.processor import PrunedProcessor
from vllm_prune.visual.models import derived
from vllm_prune.visual.models.abilities import families_of, families_with_positions, lacks, missing
from vllm_prune.visual.models.drafter import PrunedDrafter
from vllm_prune.visual.models.generic import GenericModel
from vllm_prune.visual.models.positions import attach
from vllm_prune.visual.models.table import DRAFTERS, FAMILIES, family_of

pytestmark = pytest.mark.slow
DERIVED = {name: family for name, family in FAMILIES.items() if family.kind is not None}


@pytest.mark.parametrize("architecture", DERIVED)
def test_an_adapter_is_vllm_s_model_with_ours_in_front(architecture: str) -> None:
    family, adapter = DERIVED[architecture], getattr(derived, architecture)
    assert adapter is getattr(derived, architecture)
    assert adapter.__name__ == architecture
    assert issubclass(adapter, derived.vllm_class(family.parent))
    assert adapter.vllm_prune_adapter
    assert supports_multimodal(adapter)
    assert supports_mrope(adapter) == (family.positions != "compact")
    assert issubclass(adapter, GenericModel) == (family.kind == "generic")
    processor = adapter._processor_factory.processor
    if isinstance(processor, type):
        assert issubclass(processor, PrunedProcessor)
        assert issubclass(processor, GenericProcessor) == (family.kind == "generic")
        assert (processor.sent_as, processor.marks) == (family.sent_as, family.marks)
        assert set(family.patch_grids) <= {*family.sent_as}


def test_a_processor_that_vllm_picks_by_the_checkpoint() -> None:
    class Picked:
        def __init__(self, info: str, dummy_inputs: None) -> None:
            self.info = info

    class Mixin:
        pass

    family = FAMILIES["LlavaForConditionalGeneration"]
    build = derived._processor(Picked, Mixin, family)
    indirect = derived._processor(lambda info, dummy_inputs: Picked(info, dummy_inputs), Mixin, family)
    for made in (build("about", None), indirect("about", None)):
        assert isinstance(made, Picked)
        assert isinstance(made, Mixin)
        assert made.info == "about"


def test_vllm_s_classes_keep_their_processors() -> None:
    parent = derived.vllm_class(FAMILIES["InternVLForConditionalGeneration"].parent)
    assert not issubclass(parent._processor_factory.processor, PrunedProcessor)
    assert MULTIMODAL_REGISTRY is not None


def test_an_unknown_name_is_no_adapter() -> None:
    with pytest.raises(AttributeError, match="LlamaForCausalLM"):
        _ = derived.LlamaForCausalLM
    assert family_of(["LlamaForCausalLM"]) is None
    assert family_of(["LlamaForCausalLM", "Qwen2VLForConditionalGeneration"]).name == "Qwen2-VL"


def test_original_positions_of_one_row_are_for_generic_adapters() -> None:
    for family in FAMILIES.values():
        assert family.one_row == (family.positions == "original")
        assert family.kind == "generic" or not family.one_row


@pytest.mark.parametrize("name", VISUAL.names())
def test_a_strategy_is_refused_where_a_signal_is_not_to_be_had(name: str) -> None:
    entry = next(entry for entry in VISUAL.entries() if entry["name"] == name)
    for architecture, family in FAMILIES.items():
        finding = missing(family, Part(name, options="{}", keep="0.5"))
        lacking = [signal for signal in VISUAL.create(name).wanted() if lacks(family, signal)]
        assert (finding is None) == (not lacking)
        if finding is not None:
            assert name in finding.text
            assert family.name in finding.text
        takes = set(entry["modality"]) & set(family.modalities)
        assert (architecture in families_of(entry)) == (finding is None and bool(takes))


def _looks_at_every_layer(name: str) -> bool:
    return KV.strategy_class(name).layered or name == "dyvte"


@pytest.mark.parametrize("name", KV.names())
def test_kv_strategies_run_on_families_whose_cache_can_be_evicted(name: str) -> None:
    [entry] = [entry for entry in KV.entries() if entry["name"] == name]
    found = families_of(entry)
    assert found == sorted(found)
    assert {*FAMILIES} - {*found} == {
        one
        for one, family in FAMILIES.items()
        if family.kv.startswith("refused") or (_looks_at_every_layer(name) and family.mixed_layers)
    }


def test_families_with_layers_beside_full_attention() -> None:
    windows = {"Gemma3ForConditionalGeneration", "Gemma4ForConditionalGeneration", "Step3p7ForConditionalGeneration"}
    hybrid = {name for name, family in DERIVED.items() if is_hybrid(derived.vllm_class(family.parent))}
    assert len(hybrid) >= 4
    assert {name for name, family in FAMILIES.items() if family.mixed_layers} == hybrid | windows


def test_options_decide_which_signals_a_family_has_to_give() -> None:
    generic = FAMILIES["Qwen2VLForConditionalGeneration"]
    assert missing(generic, Part("idpruner", options='{"importance":"norm"}', keep="0.5")) is None
    finding = missing(generic, Part("idpruner", options='{"importance":"attention"}', keep="0.5"))
    assert finding is not None
    assert finding.cause == "signal"


def test_a_cut_inside_the_tower_needs_an_adapter_that_knows_it() -> None:
    part = Part("uniform", options='{"after":null,"where":"tower"}', keep="0.5")
    assert missing(FAMILIES["Qwen3_5ForConditionalGeneration"], part) is None
    finding = missing(FAMILIES["Qwen2VLForConditionalGeneration"], part)
    assert finding is not None
    assert finding.param == "pruning.visual.options.where"


def test_several_positions_need_a_rotary_table_of_rows() -> None:
    several = Part("vqtoken_kmeans", options='{"positions":8,"steps":3}', keep="0.5")
    entry = next(entry for entry in VISUAL.entries() if entry["name"] == "vqtoken_kmeans")
    refused = {name for name, family in FAMILIES.items() if missing(family, several) is not None}
    assert refused == {
        "InternS1ProForConditionalGeneration",
        "Molmo2ForConditionalGeneration",
        "KimiK25ForConditionalGeneration",
        "KimiVLForConditionalGeneration",
        "Llama4ForConditionalGeneration",
    }
    assert set(families_with_positions(entry)) == set(families_of(entry)) - refused
    assert not any(families_with_positions(one) for one in VISUAL.entries() if one["name"] in ("divprune", "qtsplus"))
    for name in refused:
        finding = missing(FAMILIES[name], several)
        assert finding is not None
        assert (finding.cause, finding.param) == ("positions", "pruning.visual.options.positions")
        assert missing(FAMILIES[name], several.with_options(positions=1)) is None
    compact = replace(FAMILIES["InternVLForConditionalGeneration"], positions="compact")
    assert "place in the pruned prompt" in compact.one_position


@pytest.mark.parametrize("architecture", DRAFTERS)
def test_a_drafter_takes_off_position_columns(architecture: str) -> None:
    drafter = getattr(derived, architecture)
    assert issubclass(drafter, PrunedDrafter)
    assert issubclass(drafter, derived.vllm_class(DRAFTERS[architecture]))

    class Parent:
        config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=4))

        def embed_input_ids(self, input_ids: Any, multimodal_embeddings: Any = None, *, is_multimodal: Any) -> Any:
            return multimodal_embeddings

    class Ours(PrunedDrafter, Parent):
        pass

    rows = torch.randn(3, 4)
    seen = Ours().embed_input_ids(torch.zeros(5), [rows, attach(rows, torch.zeros(3, 3).long())], is_multimodal=None)
    assert [tuple(part.shape) for part in seen] == [(3, 4), (3, 4)]
    assert torch.equal(seen[1], rows)
    assert Ours().embed_input_ids(torch.zeros(5), None, is_multimodal=None) is None
