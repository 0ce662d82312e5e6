"""VisionSelector's scorer (arXiv 2510.16598): what the average cell of an item would attend to, by two trained maps."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import linear

from ...config.load import ENV, load
from .tower_shape import tower_shape

WEIGHTS = tuple(f"{name}_proj.{kind}" for name in ("q", "k") for kind in ("weight", "bias"))
PREFIX = "visual.importance_scorer."
"""In front of these names in a checkpoint that holds the scorer among its own weights."""


class SelectorError(ValueError):
    """Weights that cannot be used; the message says why and what to do."""


class Selector:
    """score_i = q_i . mean_j k_j / sqrt(H) with q = Wq x and k = Wk x, which is the mean of row i of the attention
    logits (section 3.2) without its N x N matrix.

    Args:
        weights: float32 by their names in `WEIGHTS`; [H, D] and [H].
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self._weights = weights

    @property
    def width(self) -> int:
        """D, hidden size of the language model."""
        return int(self._weights["q_proj.weight"].shape[1])

    def score(self, tokens: Tensor) -> Tensor:
        """float32 [M] from the cells of one item behind the merger, [M, D] in any float dtype."""
        own = {name: weight.to(tokens.device) for name, weight in self._weights.items()}
        self._weights = own
        tokens = tokens.float()
        asked = linear(tokens, own["q_proj.weight"], own["q_proj.bias"])
        mean = linear(tokens.mean(0), own["k_proj.weight"], own["k_proj.bias"])
        return asked @ mean / len(mean) ** 0.5


def load_selector(path: Path) -> Selector:
    """Read a safetensors file, or those of a folder: of the scorer alone, or a checkpoint that contains it.

    Raises:
        SelectorError: no such file, or weights missing.
    """
    found: dict[str, Tensor] = {}
    for file in _files(path):
        try:
            with safe_open(file, "pt") as tensors:
                names = set(tensors.keys())
                for name in WEIGHTS:
                    for own in {name, PREFIX + name} & names:
                        found[name] = tensors.get_tensor(own).float()
        except (OSError, SafetensorError) as error:
            raise SelectorError(f"{file} cannot be read: {error}") from None
    if missing := sorted(set(WEIGHTS) - set(found)):
        raise SelectorError(f"{path} has no {', '.join(missing)}, also not behind {PREFIX}")
    return Selector(found)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise SelectorError(f"{path} does not exist")
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]


def configured() -> Selector | None:
    """The selector that the configuration names, None without one. Raises `SelectorError`."""
    return _configured(os.environ.get(ENV))


@lru_cache(maxsize=2)
def _configured(_: str | None) -> Selector | None:
    given = load().vision_selector.weights
    return None if given is None else load_selector(Path(given))


def refusal(model_config: Any) -> str | None:
    """Why strategy `vision_selector` cannot run on a served model; None when it can."""
    try:
        selector = configured()
    except SelectorError as error:
        return f"strategy 'vision_selector' has no weights: {error}"
    if selector is None:
        return (
            "strategy 'vision_selector' needs trained weights: name a file or folder in the configuration "
            "(vision_selector: {weights: PATH}) and restart; or name another strategy"
        )
    tower = tower_shape(model_config.hf_config)
    width = None if tower is None else tower.out
    if selector.width != width:
        return f"the weights of 'vision_selector' are for hidden size {selector.width}, and this model has {width}"
    return None
