"""What every adapter does with positions that travel with embeddings: take them off, and add them before the layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor
from vllm.multimodal.utils import copy_mm_embedding_modality

from .positions import StepOffsets, detach


class PlacedModel:
    """Mixin placed before a vLLM vision-language model.

    Attributes:
        one_row: whether the parent takes one position per token; vLLM then prepares three equal rows, see
            `vllm_compat.model_config`.
    """

    vllm_prune_adapter: ClassVar[bool] = True
    one_row: ClassVar[bool] = False
    _offsets: StepOffsets

    @property
    def moves_positions(self) -> bool:
        """Whether the step at hand has kept tokens whose positions `forward` completes."""
        return self._offsets.active

    @property
    def output_width(self) -> int:
        """Columns of the parent's encoder output."""
        raise NotImplementedError

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        """Merge text and media embeddings; position columns are taken off and kept for `forward`."""
        self._offsets.clear()
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
        self._offsets.write([relative for _, relative in split], [len(rows) for rows in embeddings], is_multimodal)
        return [copy_mm_embedding_modality(rows, plain) for rows, (plain, _) in zip(embeddings, split, strict=True)]

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Parent's forward with kept tokens at their original positions."""
        if positions.ndim == 2:
            self._offsets.apply(positions)
            if self.one_row:
                positions = positions[0]
        return super().forward(input_ids, positions, *args, **kwargs)  # type: ignore[misc]
