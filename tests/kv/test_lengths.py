"""Physical lengths of a step: what attention reads is shorter, what sampling and other cache groups read is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_prune.kv.lengths import CacheLengths, GroupLengths


@dataclass
class Batch:
    """The fields of vLLM's `InputBatch` that are touched; two requests of 1 and 3 tokens, padded to 3 and 6."""

    seq_lens: Tensor
    seq_lens_cpu_upper_bound: Tensor
    positions: Tensor
    num_scheduled_tokens: np.ndarray


def batch(buffer: Tensor, positions: Tensor) -> Batch:
    buffer[:] = torch.tensor([50, 73, 0, 0])
    positions[:] = torch.tensor([49, 70, 71, 72, 9, 9])
    return Batch(buffer[:3], torch.tensor([50, 73, 0], dtype=torch.int32), positions, np.array([1, 3], dtype=np.int32))


def test_attention_reads_vllms_buffer_and_sampling_a_copy() -> None:
    buffer, positions = torch.zeros(4, dtype=torch.int32), torch.zeros(6, dtype=torch.int64)
    lengths, made = CacheLengths(torch.device("cpu")), batch(buffer, positions)
    step = lengths.begin(made, np.array([0, 20], dtype=np.int32))
    assert step.seq_lens.tolist() == [50, 73, 0]
    attended = lengths.attended(step)
    assert attended.seq_lens.data_ptr() == buffer.data_ptr()
    assert buffer.tolist() == [50, 53, 0, 0]
    assert attended.seq_lens_cpu_upper_bound.tolist() == [50, 53, 0]
    assert step.seq_lens_cpu_upper_bound.tolist() == [50, 73, 0]
    # Padding behind the last token is nobody's.
    assert lengths.slots_from(step).positions.tolist() == [49, 50, 51, 52, 9, 9]
    assert positions.tolist() == [49, 70, 71, 72, 9, 9]
    lengths.end()
    assert lengths.attended(step) is step


def test_a_step_without_evicted_rows_is_vllms_own() -> None:
    buffer, positions = torch.zeros(4, dtype=torch.int32), torch.zeros(6, dtype=torch.int64)
    lengths, made = CacheLengths(torch.device("cpu")), batch(buffer, positions)
    step = lengths.begin(made, np.zeros(2, dtype=np.int32))
    assert step is lengths.slots_from(step) is lengths.attended(step) is made
    assert buffer.tolist() == [50, 73, 0, 0]


@dataclass
class Common:
    """The fields of vLLM's `CommonAttentionMetadata` that are touched."""

    seq_lens: Tensor
    seq_lens_cpu_upper_bound: Tensor
    max_seq_len: int
    _num_computed_tokens_cache: Tensor | None = None


class Group:
    """vLLM's `AttentionGroup`, whose metadata are what they are built from."""

    def build_metadata(self, common: Common, ubatch: int = 0) -> Common:
        return common

    def build_metadata_for_cudagraph_capture(self, common: Common, ubatch: int = 0) -> Common:
        return common


def common() -> Common:
    """Two requests, padded to three."""
    lengths = torch.tensor([50, 73, 0], dtype=torch.int32)
    return Common(lengths, lengths.clone(), 73, torch.tensor([49, 70, 0]))


def test_one_group_is_shorter_and_the_others_share_vllms_lengths() -> None:
    group: Any = Group()
    lengths, shared = GroupLengths([group], 4, torch.device("cpu")), common()
    assert group.build_metadata(shared) is shared
    lengths.begin(np.array([0, 40], dtype=np.int32))
    built = group.build_metadata(shared, 0)
    assert built.seq_lens.tolist() == built.seq_lens_cpu_upper_bound.tolist() == [50, 33, 0]
    assert built.max_seq_len == 50
    assert built._num_computed_tokens_cache is None
    assert shared.seq_lens.tolist() == shared.seq_lens_cpu_upper_bound.tolist() == [50, 73, 0]
    assert Group().build_metadata(shared) is shared
    lengths.end()
    assert group.build_metadata(shared) is shared


def test_graphs_and_steps_read_lengths_at_one_address() -> None:
    group: Any = Group()
    lengths, shared = GroupLengths([group], 4, torch.device("cpu")), common()
    captured = group.build_metadata_for_cudagraph_capture(shared, 0)
    assert captured.seq_lens.data_ptr() != shared.seq_lens.data_ptr()
    assert captured.seq_lens.tolist() == [50, 73, 0]
    lengths.begin(np.array([10, 0], dtype=np.int32))
    assert group.build_metadata(shared).seq_lens.data_ptr() == captured.seq_lens.data_ptr()
    assert captured.seq_lens.tolist() == [40, 73, 0]
    # A graph reads the same address in steps without an evicted row, and in dummy steps.
    lengths.begin(np.zeros(2, dtype=np.int32))
    assert group.build_metadata(shared).seq_lens.data_ptr() == captured.seq_lens.data_ptr()
    assert captured.seq_lens.tolist() == [50, 73, 0]
