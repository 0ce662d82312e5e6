"""What every adapter does with positions that travel with embeddings: take them off, and add them before the layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.multimodal.utils import copy_mm_embedding_modality
from vllm.utils.torch_utils import async_tensor_h2d

from ...config.worker_facts import WorkerFacts
from ..item_plan import ItemPlan
from ..scorers.trained import networks_of
from ..strategies._trained import Network
from ..tower.feature_cache import FeatureCache
from .member_positions import MemberPositions
from .positions import StepOffsets, detach, members_of

ROOM = "vllm_prune_rows"
"""Key of `additional_config`: rows behind the positions of rotary tables."""


class PlacedModel:
    """Mixin placed before a vLLM vision-language model.

    Attributes:
        one_row: whether the parent takes one position per token; vLLM then prepares three equal rows, see
            `vllm_compat.model_config`.
    """

    vllm_prune_adapter: ClassVar[bool] = True
    one_row: ClassVar[bool] = False
    _offsets: StepOffsets
    _members: MemberPositions
    _cells: Tensor | None = None
    _facts: WorkerFacts
    _networks: dict[str, Network]
    _features: FeatureCache

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        # Graph capture may pad a step up to the largest captured size.
        capacity = vllm_config.scheduler_config.max_num_batched_tokens + 1024
        if isinstance(vllm_config.additional_config, dict):
            # The length of a table is part of what is compiled, and this of the key that vLLM finds it again by.
            vllm_config.additional_config[ROOM] = capacity
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self._offsets = StepOffsets(capacity)
        language = self.get_language_model()  # type: ignore[attr-defined]
        latent = bool(vllm_config.model_config.use_mla)
        self._members = MemberPositions(language, capacity, self.one_row, latent)

    def prepare(self, vllm_config: Any) -> None:
        """Take what strategies need beside the tower, once the parent is made. Raises: see `FeatureCache.of`."""
        self._facts = WorkerFacts.of(vllm_config)
        self._networks = networks_of(vllm_config)
        self._features = FeatureCache.of(vllm_config, self.output_width)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        """See the parent; features that other weights have made are forgotten."""
        self._features.clear()
        return super().load_weights(weights)  # type: ignore[misc]

    @property
    def moves_positions(self) -> bool:
        """Whether the step at hand has kept tokens whose positions `forward` completes."""
        return self._offsets.active

    @property
    def one_position(self) -> str | None:
        """Why merged tokens have one position each, None where they can have several."""
        return self._members.obstacle

    @property
    def cell_positions(self) -> Tensor | None:
        """The runner's positions of the step at hand, int64 [3, n]: of merged tokens those of one cell."""
        return self._cells

    @property
    def output_width(self) -> int:
        """Columns of the parent's encoder output."""
        raise NotImplementedError

    def embedded_text(self, plan: ItemPlan, device: torch.device) -> Tensor | None:
        """Embeddings of the text that an item's strategy reads, by the language model's own table, [L, D]."""
        if plan.text is None:
            return None
        ids = async_tensor_h2d(list(plan.text), device=device, dtype=torch.int64)
        rows: Tensor = self.get_language_model().embed_input_ids(ids)  # type: ignore[attr-defined]
        return rows

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        """Merge text and media embeddings; position columns are taken off and kept for `forward`."""
        self._offsets.clear()
        self._members.clear()
        if multimodal_embeddings is not None and len(multimodal_embeddings):
            multimodal_embeddings = self._take_offsets(multimodal_embeddings, is_multimodal)
        return super().embed_input_ids(  # type: ignore[misc]
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal
        )

    def _take_offsets(self, embeddings: Sequence[Tensor], is_multimodal: Tensor | None) -> list[Tensor] | Any:
        width = self.output_width
        if all(rows.shape[-1] == width for rows in embeddings):
            return embeddings
        assert is_multimodal is not None
        split = [detach(rows, width) for rows in embeddings]
        lengths = [len(rows) for rows in embeddings]
        self._offsets.write([relative for _, relative in split], lengths, is_multimodal)
        self._members.write([members_of(rows, width) for rows in embeddings], lengths, is_multimodal)
        return [copy_mm_embedding_modality(rows, plain) for rows, (plain, _) in zip(embeddings, split, strict=True)]

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Parent's forward with kept tokens at their original positions."""
        if positions.ndim == 2:
            self._cells = positions
            self._members.compose(positions)
            self._offsets.apply(positions)
            positions = self._members.hand_on(positions)
            if self.one_row:
                positions = positions[0]
        return super().forward(input_ids, positions, *args, **kwargs)  # type: ignore[misc]
