"""Families with one position per token are shown to vLLM's runners as M-RoPE with three equal rows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vllm_prune.visual.models.table import FAMILIES
from vllm_prune.vllm_compat.model_config import ROWS, patch_model_config, shown_as_mrope

pytestmark = pytest.mark.slow


def test_by_the_architecture_that_vllm_has_resolved() -> None:
    for architecture, family in FAMILIES.items():
        assert shown_as_mrope(SimpleNamespace(_architecture=architecture)) == family.one_row
    assert not shown_as_mrope(SimpleNamespace(_architecture="TransformersMultiModalForCausalLM"))
    assert not shown_as_mrope(SimpleNamespace())


def test_the_properties() -> None:
    from transformers import LlamaConfig
    from vllm.config import ModelConfig

    patch_model_config()
    patch_model_config()
    config = object.__new__(ModelConfig)
    config.hf_config = LlamaConfig()
    config._architecture = "LlamaForCausalLM"
    assert (config.uses_mrope, config.mrope_num_dims) == (False, 0)
    config._architecture = "InternVLForConditionalGeneration"
    assert (config.uses_mrope, config.mrope_num_dims) == (True, ROWS)
    config.hf_config = LlamaConfig(
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 4, 4, 4]}
    )
    assert (config.uses_mrope, config.mrope_num_dims) == (True, 4)
