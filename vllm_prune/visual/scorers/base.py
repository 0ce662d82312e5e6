"""The common shape of scorers that were trained for a model: where one lies, whether it fits, what it scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor

from ...grid import Grid
from .tower_shape import TowerShape, tower_shape


class ScorerError(ValueError):
    """Weights that cannot be used; the message says why and what to do."""


class CellScorer(Protocol):
    """Loaded weights."""

    def score(self, cells: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Score cells.

        Args:
            cells: float [sum of M, D] in raster order, one item after the other.
            grids: the items.

        Returns:
            float32 [sum of M], higher is kept first.
        """


class TrainedWeights(ABC):
    """The weights of one strategy.

    Attributes:
        strategy: its name in the catalogue.
        how_to_get: what to do where there are none.
    """

    strategy: ClassVar[str]
    how_to_get: ClassVar[str]

    @abstractmethod
    def locate(self, vllm_config: Any) -> Path | None:
        """File or folder for a served model; None where there is none.

        Raises:
            ScorerError: the configuration names one that does not exist.
        """

    @abstractmethod
    def unfit(self, path: Path, tower: TowerShape) -> str | None:
        """Why the weights at `path` do not belong to a model with such a tower; None when they do.

        Raises:
            ScorerError: the file cannot be read.
        """

    @abstractmethod
    def load(self, path: Path) -> CellScorer:
        """The weights at `path`, ready to score.

        Raises:
            ScorerError: the file cannot be read.
        """

    def refusal(self, vllm_config: Any) -> str | None:
        """Why the strategy cannot run on a served model, and what to do; None when it can."""
        try:
            path = self.locate(vllm_config)
            if path is None:
                return self.how_to_get
            tower = tower_shape(vllm_config.model_config.hf_config)
            if tower is None:
                return "the model's configuration does not say what its vision tower is like; name another strategy"
            problem = self.unfit(path, tower)
        except (ScorerError, OSError) as error:
            return str(error)
        return None if problem is None else f"{path} does not fit this model: {problem}"
