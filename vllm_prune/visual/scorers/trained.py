"""Trained layers on disk: which file has those of a strategy, whether they fit the served model, and reading them.

A file names its tensors as the authors' code does. In a checkpoint that holds them among a model's weights something
stands in front of all these names; it is what stands in front of the strategy's anchor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ...catalogue import KV, VISUAL
from ...config.worker_facts import WorkerFacts
from ..strategies._trained import LanguageShape, LayoutError, Network, TrainedLayout
from .base import ScorerError

Places = Mapping[str, tuple[Path, str, tuple[int, ...]]]
"""File, full name and shape of each tensor, by its name without the prefix."""


def language_shape(hf_config: Any) -> LanguageShape | None:
    """Sizes of a model's language model and of its frames; None where its configuration does not say the former."""
    text = hf_config.get_text_config() if hasattr(hf_config, "get_text_config") else None
    width, heads = getattr(text, "hidden_size", None), getattr(text, "num_attention_heads", None)
    if not width or not heads:
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    theta = rope.get("rope_theta") or getattr(text, "rope_theta", None) or LanguageShape.theta
    eps = getattr(text, "rms_norm_eps", None) or LanguageShape.eps
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    layers = getattr(text, "num_hidden_layers", None) or 0
    return LanguageShape(width, heads, kv_heads, float(theta), float(eps), _frame_patches(hf_config), layers)


def _frame_patches(hf_config: Any) -> int:
    vision = getattr(hf_config, "vision_config", None)
    size, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    return (size // patch) ** 2 if isinstance(size, int) and isinstance(patch, int) else 0


def refusal(strategy: str, vllm_config: Any) -> str | None:
    """Why a strategy with trained layers cannot run on a served model, and what to do; None when it can."""
    path = WorkerFacts.of(vllm_config).weights.get(strategy)
    if path is None:
        return (
            f"it needs trained weights ({_class(strategy).source}): name a file or folder in the configuration "
            f"(weights: {{{strategy}: PATH}}) and restart; or name another strategy"
        )
    return _problem(strategy, Path(path), language_shape(vllm_config.model_config.hf_config))


def networks_of(vllm_config: Any) -> dict[str, Network]:
    """The layers of all visual strategies that the configuration names weights for, on the device of models to be made.

    Raises:
        ScorerError: see `network_of`.
    """
    networks = {}
    for strategy in sorted({*WorkerFacts.of(vllm_config).weights} & {*VISUAL.names()}):
        network = network_of(strategy, vllm_config)
        assert network is not None
        networks[strategy] = network.to(torch.get_default_device())
    return networks


def network_of(strategy: str, vllm_config: Any) -> Network | None:
    """The layers of a strategy, on the CPU; None where the configuration names no weights for it.

    Raises:
        ScorerError: weights that do not fit the served model, so that the server does not start with them.
    """
    path = WorkerFacts.of(vllm_config).weights.get(strategy)
    if path is None:
        return None
    language = language_shape(vllm_config.model_config.hf_config)
    if text := _problem(strategy, Path(path), language):
        raise ScorerError(f"weights.{strategy}: {text}")
    assert language is not None
    return load_network(strategy, Path(path), language)


def load_network(strategy: str, path: Path, language: LanguageShape) -> Network:
    """The layers of a strategy, on the CPU and in the dtype of their file.

    Raises:
        ScorerError: no such file, or not that strategy's.
        LayoutError: they do not fit a language model of these sizes.
    """
    places = find(_class(strategy), path)
    names = _class(strategy).check({name: shape for name, (_, _, shape) in places.items()}, language)
    tensors = {}
    for file in {places[name][0] for name in names}:
        with safe_open(file, "pt") as content:
            for name in names:
                if places[name][0] == file:
                    tensors[name] = content.get_tensor(places[name][1])
    return Network(tensors, language)


def find(strategy: type[TrainedLayout], path: Path) -> Places:
    """Where the tensors of a strategy are, without reading them.

    Raises:
        ScorerError: no such file, unreadable, or none of that strategy's tensors, or those of several models.
    """
    tensors = list(_tensors(strategy.name, path))
    anchors = {
        name.removesuffix(strategy.anchor) for _, name, _ in tensors if f".{name}".endswith(f".{strategy.anchor}")
    }
    if len(anchors) != 1:
        what = f"no {strategy.anchor}" if not anchors else f"several tensors whose name ends with {strategy.anchor}"
        raise ScorerError(f"{path} has {what}, so it is not known which tensors are those of {strategy.name}")
    [prefix] = anchors
    return {
        name.removeprefix(prefix): (file, name, shape) for file, name, shape in tensors if name.startswith(prefix)
    }  # fmt: skip


def _tensors(strategy: str, path: Path) -> Iterator[tuple[Path, str, tuple[int, ...]]]:
    if not path.exists():
        raise ScorerError(f"weights.{strategy} names {path}, which does not exist; correct the path or remove it")
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        try:
            with safe_open(file, "pt") as content:
                for name in content.keys():  # noqa: SIM118 - not a dict
                    yield file, name, tuple(content.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise ScorerError(f"{file} cannot be read: {error}") from None


def _problem(strategy: str, path: Path, language: LanguageShape | None) -> str | None:
    """Why the weights at `path` cannot be used for a language model; None when they can."""
    if language is None:
        return "the model's configuration does not say what its language model is like; name another strategy"
    try:
        state = path.stat() if path.exists() else None
        return _fit(strategy, path, language, state and (state.st_mtime_ns, state.st_size))
    except (ScorerError, OSError) as error:
        return str(error)


@lru_cache(maxsize=16)
def _fit(strategy: str, path: Path, language: LanguageShape, state: tuple[int, int] | None) -> str | None:
    # A file that is replaced is read again; a second one within a tick of the clock has the same time.
    places = find(_class(strategy), path)
    try:
        _class(strategy).check({name: shape for name, (_, _, shape) in places.items()}, language)
    except LayoutError as error:
        return f"{path} does not fit this model: {error}"
    return None


def _class(strategy: str) -> type[TrainedLayout]:
    cls: type = (VISUAL if strategy in VISUAL.names() else KV).strategy_class(strategy)
    assert issubclass(cls, TrainedLayout)
    return cls
