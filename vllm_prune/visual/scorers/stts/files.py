"""Scorers as files: safetensors with the weights, and the shape in the metadata."""

from __future__ import annotations

import os
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ..base import ScorerError
from .model import Scorer, Shape

PLACE = Path("stts") / "scorer.safetensors"
"""Where a scorer lies beside the files of a checkpoint."""

_WORDS = ("rescale", "refill")


def save(scorer: Scorer, path: Path) -> None:
    """Write the weights in float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().float().contiguous() for name, weight in scorer.state_dict().items()}
    save_file(weights, path, {key: str(value) for key, value in asdict(scorer.shape).items()})


def read_shape(path: Path) -> Shape:
    """The shape of a scorer's file, without its weights.

    Raises:
        ScorerError: no such file, or not a scorer's.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ScorerError(f"{path} cannot be read as a scorer: {error}") from None
    try:
        values = {f.name: metadata[f.name] if f.name in _WORDS else int(metadata[f.name]) for f in fields(Shape)}
        return Shape(**values)  # type: ignore[arg-type]
    except KeyError as error:
        raise ScorerError(
            f"{path} has no metadata {error}; write it with vllm_prune.visual.scorers.stts.files.save"
        ) from None
    except ValueError as error:
        raise ScorerError(f"{path}: {error}") from None


def load(path: Path) -> Scorer:
    """A scorer without gradients, float32, on the CPU.

    Raises:
        ScorerError: see `read_shape`; or weights that do not have that shape.
    """
    # Whatever dtype a serving process has made its default.
    scorer = Scorer(read_shape(path)).float()
    try:
        scorer.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ScorerError(f"{path} does not have the shape that its metadata says: {error}") from None
    return scorer.eval().requires_grad_(False)


def locate(model: str, configured: str | os.PathLike[str] | None = None, revision: str | None = None) -> Path | None:
    """The file of a served model's scorer, None where there is none.

    Args:
        model: folder or hub name of the checkpoint.
        configured: file that the operator names; it comes first and has to exist.
        revision: of the hub name.

    Raises:
        ScorerError: `configured` does not exist.
    """
    if configured is not None:
        if not Path(configured).is_file():
            raise ScorerError(f"stts.scorer names {configured}, which does not exist; correct the path or remove it")
        return Path(configured)
    if Path(model).is_dir():
        beside = Path(model) / PLACE
        return beside if beside.is_file() else None
    return _in_hub_cache(model, revision)


@lru_cache(maxsize=16)
def _in_hub_cache(model: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model, PLACE.as_posix(), revision=revision)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def unfit(shape: Shape, width: int, merge: int, depth: int) -> str | None:
    """Why a scorer does not belong to a tower of this hidden size, merge and depth; None when it does."""
    if (shape.width, shape.merge) != (width, merge):
        return (
            f"it was trained for a tower of width {shape.width} with cells of {shape.merge} x {shape.merge} patches, "
            f"and this one has width {width} and {merge} x {merge}"
        )
    if shape.after >= depth:
        return f"it biases block number {shape.after}, and this tower has {depth} blocks, counted from 0"
    return None
