"""Adapters that are made from a row of the table: vLLM's class with our mixins in front of it.

vLLM's registry names a class by module and attribute, so each adapter is an attribute of this module, under its
architecture's name, and is made when it is first looked up. Its multimodal processor is made in the same way, from the
parts that vLLM has registered for the parent.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from vllm.multimodal import MULTIMODAL_REGISTRY

from .table import DRAFTERS, FAMILIES, Family

VLLM_MODELS = "vllm.model_executor.models"


def __getattr__(name: str) -> type[Any]:
    """The adapter of an architecture."""
    if name in DRAFTERS:
        made = make_drafter(name, vllm_class(DRAFTERS[name]))
    elif name in FAMILIES and FAMILIES[name].kind is not None:
        made = make_adapter(name, FAMILIES[name])
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = made
    return made


def vllm_class(path: str) -> type[Any]:
    """A class of vLLM's models from its module and name."""
    module, _, name = path.partition(":")
    model: type[Any] = getattr(importlib.import_module(f"{VLLM_MODELS}.{module}"), name)
    return model


def make_adapter(architecture: str, family: Family) -> type[Any]:
    """The adapter of an architecture, registered with its processor.

    Args:
        architecture: name of the class that is made.
        family: a row with a `kind`.
    """
    parent = vllm_class(family.parent)
    parts = parent._processor_factory
    model_mixin, processor_mixin = mixins(family)
    processor = _processor(parts.processor, processor_mixin, family)
    attributes: dict[str, Any] = {"family": family}
    if family.one_row:
        attributes |= {"one_row": True, "supports_mrope": True}
    adapter = _subclass(architecture, (model_mixin, parent), attributes)
    register = MULTIMODAL_REGISTRY.register_processor(processor, info=parts.info, dummy_inputs=parts.dummy_inputs)
    registered: type[Any] = register(adapter)
    return registered


def _processor(parent: Callable[..., Any], mixin: type[Any], family: Family) -> Callable[..., Any]:
    """What makes the adapter's processor; where vLLM has a function that picks the class, so have we."""
    if isinstance(parent, type):
        attributes = {"family": family, "sent_as": family.sent_as, "marks": family.marks}
        return _subclass(f"Prune{parent.__name__}", (mixin, parent), attributes)

    def build(info: Any, dummy_inputs: Any) -> Any:
        return _processor(type(parent(info, dummy_inputs)), mixin, family)(info, dummy_inputs)

    return build


def mixins(family: Family) -> tuple[type[Any], type[Any]]:
    """What is put in front of vLLM's model and of its processor."""
    if family.kind == "Qwen3-VL":
        from .qwen3_vl import Qwen3VLModel, Qwen3VLProcessor

        return Qwen3VLModel, Qwen3VLProcessor
    if family.kind == "Qwen2.5-VL":
        from .qwen2_5_vl import Qwen25VLModel, Qwen25VLProcessor

        return Qwen25VLModel, Qwen25VLProcessor
    from ..frontend.generic_processor import GenericProcessor
    from .generic import GenericModel

    return GenericModel, GenericProcessor


def make_drafter(architecture: str, parent: type[Any]) -> type[Any]:
    """A draft model that takes the target's embeddings of pruned media."""
    from .drafter import PrunedDrafter

    return _subclass(architecture, (PrunedDrafter, parent), {})


def _subclass(name: str, bases: tuple[type[Any], ...], attributes: dict[str, Any]) -> type[Any]:
    return type(name, bases, {"__module__": __name__, "__doc__": bases[0].__doc__, **attributes})
