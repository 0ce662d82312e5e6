"""How much shorter the caches of a step's requests are than their texts.

`CacheLengths` is for Model Runner V2 and models with one cache group. The input batch stays logical: sampling, seeds
and penalties read it. What attention reads becomes physical: the lengths, in vLLM's own buffer, whose address full CUDA
graphs have captured; their upper bounds on the host, from which some backends plan; and the positions that slots are
computed from. A step in which no cache is shorter costs nothing.

`GroupLengths` is for both runners and models with several cache groups, of which one is shorter: the others, states of
a recurrence or rows of sliding windows, find their blocks by logical lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        return replace(batch, positions=cached_positions(batch, self.evicted, self.device))

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


def cached_positions(batch: Any, evicted: np.ndarray, device: torch.device) -> Tensor:
    """Positions of the tokens of a V2 batch counted in cached rows, int64 as long as the batch's.

    Args:
        batch: vLLM's `InputBatch`.
        evicted: int32 [R], evicted rows per request.
        device: where the positions are.
    """
    per_token = np.repeat(evicted, batch.num_scheduled_tokens).astype(np.int64)
    positions: Tensor = batch.positions.clone()
    positions[: len(per_token)] -= async_tensor_h2d(per_token, device=device)
    return positions


class GroupLengths:
    """Lengths of one cache group in the step at hand, where other groups have those of the text.

    Attention's metadata of the group are built from lengths in a buffer of its own, whose address full CUDA graphs
    capture; so once there are such graphs it is filled in every step.

    Args:
        groups: vLLM's `AttentionGroup`s of the cache group.
        requests: most requests of a batch.
        device: where lengths live.

    Attributes:
        evicted: int32 [R], evicted rows per request of the batch; None where nothing is evicted.
    """

    def __init__(self, groups: Sequence[Any], requests: int, device: torch.device) -> None:
        self.evicted: np.ndarray | None = None
        self.device = device
        self._lengths = torch.zeros(requests, dtype=torch.int32, device=device)
        self._captured = False
        for group in groups:
            self._wrap(group)

    def _wrap(self, group: Any) -> None:
        build, capture = group.build_metadata, group.build_metadata_for_cudagraph_capture

        # On the instance: its class is a plain dataclass that other cache groups share.
        def build_metadata(common: Any, *args: Any, **kwargs: Any) -> Any:
            return build(self._shortened(common), *args, **kwargs)

        def build_metadata_for_cudagraph_capture(common: Any, *args: Any, **kwargs: Any) -> Any:
            self._captured = True
            return capture(replace(common, seq_lens=self._filled(common)), *args, **kwargs)

        group.build_metadata = build_metadata
        group.build_metadata_for_cudagraph_capture = build_metadata_for_cudagraph_capture

    def begin(self, evicted: np.ndarray) -> None:
        """Shorten the group in the coming step.

        Args:
            evicted: int32 [R], never written to again: a copy to the device may alias it or still be under way.
        """
        self.evicted = evicted if evicted.any() else None

    def end(self) -> None:
        """Forget the step."""
        self.evicted = None

    def _filled(self, common: Any) -> Tensor:
        lengths = self._lengths[: len(common.seq_lens)]
        lengths.copy_(common.seq_lens)
        return lengths

    def _shortened(self, common: Any) -> Any:
        """A `CommonAttentionMetadata` of vLLM with lengths of the group's caches."""
        evicted = self.evicted
        if evicted is None:
            return replace(common, seq_lens=self._filled(common)) if self._captured else common
        lengths, bound = self._filled(common), common.seq_lens_cpu_upper_bound.clone()
        lengths[: len(evicted)] -= async_tensor_h2d(evicted, device=self.device)
        bound[: len(evicted)] -= torch.from_numpy(evicted)
        return replace(
            common,
            seq_lens=lengths,
            seq_lens_cpu_upper_bound=bound,
            max_seq_len=int(bound.max()),
            _num_computed_tokens_cache=None,
        )
