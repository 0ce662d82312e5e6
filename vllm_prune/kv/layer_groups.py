"""Layers in several cache groups by depth, so that late ones can keep fewer rows than early ones.

vLLM gives layers whose caches are described alike one block table. `LayerGroupSpec` makes the description of a layer
differ by the layer group that it belongs to, so vLLM forms cache groups of their own, with tables and counts of their
own, over one pool of blocks. All cache groups have the same number of layers; where layer groups differ in theirs,
vLLM divides the larger ones (14 and 7 layers become three cache groups of 7), and pads what does not divide evenly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec, replace_as

from ..config.worker_facts import WorkerFacts


@dataclass(frozen=True, kw_only=True)
class LayerGroupSpec(FullAttentionSpec):
    """vLLM's description of a layer of full attention, with the layer group that it belongs to.

    Attributes:
        first_layer: number of the first layer of that group.
    """

    first_layer: int

    def is_uniform_with_collection(self, kv_cache_specs: dict[str, KVCacheSpec]) -> bool:
        """Whether all layers are in the same group: only then does one block table suit them."""
        return all(spec == self for spec in kv_cache_specs.values())

    @classmethod
    def merge(cls, specs: list[Self]) -> Self:
        """The description of layers of one group.

        Raises:
            AssertionError: they are of several, which is how vLLM learns that they need several cache groups.
        """
        first = specs[0].first_layer
        assert all(spec.first_layer == first for spec in specs), "these layers belong to several layer groups"
        # vLLM's copies the fields that it knows.
        merged: Any = FullAttentionSpec.merge([replace_as(s, FullAttentionSpec, drop=("first_layer",)) for s in specs])
        return replace_as(merged, cls, first_layer=first)


def of_engine(specs: Mapping[str, KVCacheSpec], vllm_config: Any) -> Mapping[str, KVCacheSpec]:
    """VLLM's descriptions of the layers, told apart where the operator has configured several groups.

    Args:
        specs: vLLM's, by name of the layer.
        vllm_config: vLLM's configuration.

    Raises:
        ValueError: the engine, or the model, is of a kind for which several groups have not been proven exact.
    """
    starts, parallel = WorkerFacts.of(vllm_config).layer_groups, vllm_config.parallel_config
    if not starts:
        return specs
    unproven = {
        "speculative decoding": vllm_config.speculative_config is not None,
        "model runner V2": bool(vllm_config.use_v2_model_runner),
        "tensor parallelism": parallel.tensor_parallel_size > 1,
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "context parallelism": max(parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size) > 1,
        "micro-batch overlap (DBO)": parallel.use_ubatching,
        "a KV connector": vllm_config.kv_transfer_config is not None,
    }
    for name, used in unproven.items():
        if used:
            raise ValueError(f"kv.layer_groups has not been proven exact beside {name}; take one of the two out")
    return grouped(specs, starts)


def grouped(specs: Mapping[str, KVCacheSpec], starts: Sequence[int]) -> dict[str, KVCacheSpec]:
    """Descriptions that make vLLM form a cache group per layer group.

    Args:
        specs: vLLM's, by name of the layer, in the order of the layers.
        starts: number of the first layer of every group but the first, ascending; empty for one group.

    Raises:
        ValueError: the model does not have that many layers, or layers of other kinds.
    """
    if not starts:
        return dict(specs)
    others = [name for name, spec in specs.items() if type(spec) is not FullAttentionSpec]
    if others:
        raise ValueError(
            f"kv.layer_groups needs a model whose layers all have full attention, and {others[0]} is described by "
            f"{type(specs[others[0]]).__name__}; take the option out"
        )
    if starts[-1] >= len(specs):
        raise ValueError(
            f"kv.layer_groups names layer {starts[-1]}, and the model has layers 0 to {len(specs) - 1}; name those"
        )
    firsts = [max(start for start in (0, *starts) if start <= number) for number in range(len(specs))]
    return {
        name: replace_as(spec, LayerGroupSpec, first_layer=first)
        for (name, spec), first in zip(specs.items(), firsts, strict=True)
    }


@dataclass(frozen=True)
class LayerGroups:
    """The cache groups that are compacted, by the layer group that they belong to.

    Attributes:
        firsts: number of the first layer of each layer group, ascending.
        layers: number of layers of each.
        members: cache groups of each.
    """

    firsts: tuple[int, ...]
    layers: tuple[int, ...]
    members: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, groups: Sequence[Any], compacted: Sequence[int]) -> LayerGroups:
        """From `kv_cache_groups` of vLLM's cache configuration, and the indices of those that are compacted."""
        firsts = {index: getattr(groups[index].kv_cache_spec, "first_layer", 0) for index in compacted}
        ascending = tuple(sorted(set(firsts.values())))
        members = tuple(tuple(index for index in compacted if firsts[index] == first) for first in ascending)
        layers = tuple(sum(len(groups[index].layer_names) for index in of_one) for of_one in members)
        return cls(ascending, layers, members)

    def of_member(self, group: int) -> int:
        """Number of the layer group that a cache group belongs to."""
        return next(number for number, members in enumerate(self.members) if group in members)
