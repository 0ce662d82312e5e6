"""Which scorer belongs to a served model, for the front end and for the workers."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from ....config.load import ENV, load
from ..tower_shape import tower_shape
from .files import PLACE, ScorerError, locate, read_shape, unfit
from .model import Shape


def scorer_of(model_config: Any) -> Path | None:
    """File of the scorer of vLLM's model configuration; None where there is none. Raises `ScorerError`."""
    return locate(model_config.model, _given(os.environ.get(ENV)), getattr(model_config, "revision", None))


def refusal(model_config: Any) -> str | None:
    """Why strategy `stts` cannot run on a served model; None when it can."""
    try:
        path = scorer_of(model_config)
        if path is None:
            return (
                f"strategy 'stts' needs a scorer trained for this model: put it at {PLACE} beside the checkpoint, or "
                "name it in the configuration (stts: {scorer: FILE}), and restart; or name another strategy"
            )
        shape = _shape(path, path.stat().st_mtime_ns)
    except (ScorerError, OSError) as error:
        return f"strategy 'stts' has no scorer: {error}"
    tower = tower_shape(model_config.hf_config)
    if tower is None or tower.depth is None:
        return "strategy 'stts' cannot run: the model's configuration does not say what its vision tower is like"
    problem = unfit(shape, tower.width, tower.merge, tower.depth)
    return None if problem is None else f"the scorer {path} does not fit this model: {problem}"


@lru_cache(maxsize=4)
def _given(_: str | None) -> str | None:
    # Read once, like the rest of the configuration; the argument names the file.
    return load().stts.scorer


@lru_cache(maxsize=4)
def _shape(path: Path, _: int) -> Shape:
    return read_shape(path)
