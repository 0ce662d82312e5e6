"""How much shorter the caches of a step's requests are than their texts, on vLLM's Model Runner V2.

The input batch stays logical: sampling, seeds and penalties read it. What attention reads becomes physical: the
lengths, in vLLM's own buffer, whose address full CUDA graphs have captured; their upper bounds on the host, from which
some backends plan; and the positions that slots are computed from. A step in which no cache is shorter costs nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.utils.torch_utils import async_tensor_h2d


class CacheLengths:
    """Lengths of the step that is being prepared; between steps, and in dummy batches, those of full caches.

    Attributes:
        evicted: int32 [R], evicted rows per request of the batch; None where nothing is evicted.
        physical: int32 [R], cached rows per request as attention reads them, with padding behind; a part of vLLM's
            buffer. None where nothing is evicted.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.evicted: np.ndarray | None = None
        self.physical: Tensor | None = None

    def begin(self, batch: Any, evicted: np.ndarray) -> Any:
        """Shorten vLLM's buffer.

        Args:
            batch: vLLM's `InputBatch` of the step, its lengths in the buffer.
            evicted: int32 [R], never written to again: a copy to the device may alias it or still be under way.

        Returns:
            The batch, with logical lengths at an address of their own.
        """
        if not evicted.any():
            return batch
        logical, self.evicted, self.physical = batch.seq_lens.clone(), evicted, batch.seq_lens
        # A fresh copy per step: kernels of the step before may still read that step's.
        batch.seq_lens[: len(evicted)] -= async_tensor_h2d(evicted, device=self.device)
        return replace(batch, seq_lens=logical)

    def slots_from(self, batch: Any) -> Any:
        """The batch with positions counted in cached rows, from which slots are computed."""
        if self.evicted is None:
            return batch
        per_token = np.repeat(self.evicted, batch.num_scheduled_tokens).astype(np.int64)
        positions = batch.positions.clone()
        positions[: len(per_token)] -= async_tensor_h2d(per_token, device=self.device)
        return replace(batch, positions=positions)

    def attended(self, batch: Any) -> Any:
        """The batch with lengths of caches, from which attention's metadata are made."""
        if self.evicted is None:
            return batch
        bound = batch.seq_lens_cpu_upper_bound.clone()
        bound[: len(self.evicted)] -= torch.from_numpy(self.evicted)
        return replace(batch, seq_lens=self.physical, seq_lens_cpu_upper_bound=bound)

    def end(self) -> None:
        """Forget the step."""
        self.evicted = self.physical = None
