"""Layers told apart by depth, so that vLLM gives them cache groups of their own."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec, UniformTypeKVCacheSpecs
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from vllm_prune.kv.layer_groups import LayerGroups, LayerGroupSpec, grouped, of_engine

SHAPE: dict[str, Any] = {"block_size": 16, "num_kv_heads": 2, "head_size": 8, "dtype": torch.float32}
FULL = FullAttentionSpec(**SHAPE)


def layers(count: int) -> dict[str, Any]:
    return {f"layers.{number}": FULL for number in range(count)}


def cache_groups(specs: dict[str, Any]) -> list[Any]:
    """As vLLM forms them; 0.33 has moved that to a module of its own."""
    moved = importlib.util.find_spec("vllm.v1.core.kv_cache_planning") is not None
    planning = importlib.import_module(f"vllm.v1.core.{'kv_cache_planning' if moved else 'kv_cache_utils'}")
    scheduler = SimpleNamespace(disable_hybrid_kv_cache_manager=False)
    config: Any = SimpleNamespace(
        scheduler_config=scheduler,
        attention_config=SimpleNamespace(hisparse_config=None),
        cache_config=SimpleNamespace(
            get_resolved_kv_cache_layout=lambda: SimpleNamespace(is_block_outermost=False, is_block_compact=True)
        ),
        speculative_config=None,
    )
    groups: list[Any] = planning.get_kv_cache_groups(config, specs)
    return groups


@pytest.mark.parametrize(
    ("count", "starts", "sizes", "expected"),
    [
        (28, (), [28], LayerGroups((0,), (28,), ((0,),))),
        (28, (14,), [14, 14], LayerGroups((0, 14), (14, 14), ((0,), (1,)))),
        (28, (21,), [7, 7, 7, 7], LayerGroups((0, 21), (21, 7), ((0, 1, 2), (3,)))),
        (28, (7, 21), [7, 7, 7, 7], LayerGroups((0, 7, 21), (7, 14, 7), ((0,), (1, 2), (3,)))),
        (36, (12, 24), [12, 12, 12], LayerGroups((0, 12, 24), (12, 12, 12), ((0,), (1,), (2,)))),
    ],
)
def test_cache_groups_follow_the_layers(
    count: int, starts: tuple[int, ...], sizes: list[int], expected: LayerGroups
) -> None:
    groups = cache_groups(grouped(layers(count), starts))
    assert [len(group.layer_names) for group in groups] == sizes
    found = LayerGroups.of(groups, range(len(groups)))
    assert found == expected
    for number, members in enumerate(found.members):
        bounds = (*found.firsts, count)
        inside = sorted(int(name.split(".")[1]) for member in members for name in groups[member].layer_names)
        assert inside == list(range(bounds[number], bounds[number + 1]))
        assert all(found.of_member(member) == number for member in members)


def test_without_the_option_nothing_is_told_apart() -> None:
    assert grouped(layers(4), ()) == layers(4)


def test_layers_of_one_group_are_described_as_vllm_describes_them() -> None:
    spec = grouped(layers(4), (2,))["layers.3"]
    assert isinstance(spec, LayerGroupSpec)
    assert spec.first_layer == 2
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert spec.page_size_bytes == FULL.page_size_bytes
    assert KVCacheSpecRegistry.get_manager_class(spec) is FullAttentionManager
    merged = spec.merge([spec, spec])
    assert merged == spec
    with pytest.raises(AssertionError, match="several layer groups"):
        spec.merge([spec, grouped(layers(4), (2,))["layers.0"]])
    assert UniformTypeKVCacheSpecs.from_specs(grouped(layers(4), (2,))) is None


def test_models_with_other_layers_are_refused_at_start() -> None:
    mixed = {**layers(2), "layers.2": SlidingWindowSpec(**SHAPE, sliding_window=64)}
    with pytest.raises(ValueError, match=r"layers\.2 is described by SlidingWindowSpec; take the option out"):
        grouped(mixed, (1,))
    with pytest.raises(ValueError, match="names layer 4, and the model has layers 0 to 3"):
        grouped(layers(4), (2, 4))


def engine(starts: list[int], **changes: Any) -> Any:
    """vLLM's configuration, as far as it matters."""
    parallel = {
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "decode_context_parallel_size": 1,
        "prefill_context_parallel_size": 1,
        "use_ubatching": False,
    }
    return SimpleNamespace(
        additional_config={"vllm_prune": {"layer_groups": starts}},
        parallel_config=SimpleNamespace(**{name: changes.get(name, value) for name, value in parallel.items()}),
        use_v2_model_runner=changes.get("use_v2_model_runner", False),
        speculative_config=changes.get("speculative_config"),
        kv_transfer_config=changes.get("kv_transfer_config"),
    )


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"speculative_config": object()}, "speculative decoding"),
        ({"use_v2_model_runner": True}, "model runner V2"),
        ({"tensor_parallel_size": 2}, "tensor parallelism"),
        ({"pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"decode_context_parallel_size": 2}, "context parallelism"),
        ({"prefill_context_parallel_size": 2}, "context parallelism"),
        ({"use_ubatching": True}, "micro-batch overlap"),
        ({"kv_transfer_config": object()}, "a KV connector"),
    ],
)
def test_engines_that_are_not_proven_are_refused_at_start(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"has not been proven exact beside {name}"):
        of_engine(layers(4), engine([2], **changes))
    assert of_engine(layers(4), engine([], **changes)) == layers(4)
    assert of_engine(layers(4), engine([2])) == grouped(layers(4), (2,))
