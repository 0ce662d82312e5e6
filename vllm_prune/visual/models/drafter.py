"""Draft models that share the target's encoder outputs, such as the multi-token prediction (MTP) heads of Qwen3.5."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.multimodal.utils import copy_mm_embedding_modality


class PrunedDrafter:
    """Mixin placed before a draft model of vLLM.

    A draft model embeds the target's next tokens itself, and vLLM hands it the target's encoder outputs for those that
    stand for media. Those of a pruned item carry position columns; the positions themselves reach the drafter in the
    target's own buffer, to which the target's forward pass has added the offsets by then.
    """

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        """See the parent. Rows of media come as [n, width] or, from a pruned item, with further columns."""
        if multimodal_embeddings is not None and len(multimodal_embeddings):
            width = self.config.get_text_config().hidden_size  # type: ignore[attr-defined]
            multimodal_embeddings = [
                rows if rows.shape[-1] == width else copy_mm_embedding_modality(rows, rows[:, :width])
                for rows in multimodal_embeddings
            ]
        return super().embed_input_ids(  # type: ignore[misc]
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal
        )
