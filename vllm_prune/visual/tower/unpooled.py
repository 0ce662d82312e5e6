"""A video's frames before the model pools them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from ..strategies._frames import Frames
from .received_attention import Listener


class UnpooledFrames(Listener):
    """Listens to the pooling of LLaVA-OneVision; only where a strategy looks at what goes into it.

    vLLM runs the tower, the projector and the pooling on the frames of all videos of a batch at once.
    """

    def __init__(self, model: Any, enabled: bool) -> None:
        super().__init__(*[model] * enabled)
        self._pooled = 0

    def __enter__(self) -> Self:
        # It is a method of the model, which has no hooks.
        for model in self._modules:
            pool = model.apply_pooling

            def apply_pooling(
                rows: Tensor, *args: Any, pool: Callable[..., Tensor] = pool, model: Any = model, **kwargs: Any
            ) -> Tensor:
                pooled = pool(rows, *args, **kwargs)
                self._received[model].append(rows)
                self._pooled = pooled.shape[1]
                return pooled

            model.apply_pooling = apply_pooling
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for model in self._modules:
            del model.apply_pooling

    def per_item(self, modalities: Sequence[str], kwargs: dict[str, Any]) -> Sequence[Frames | None]:
        """Frames of each video; None for pictures, and where they were not captured.

        Args:
            modalities: of the batch's items.
            kwargs: of the model's `embed_multimodal`.
        """
        parts = [rows for received in self._received.values() for rows in received]
        if not parts:
            return [None] * len(modalities)
        lengths = [len(video) for video in kwargs["pixel_values_videos"]]
        videos = iter((torch.cat(parts) if len(parts) > 1 else parts[0]).split(lengths))
        return [Frames(next(videos), self._pooled) if one == "video" else None for one in modalities]
