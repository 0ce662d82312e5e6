"""Physical lengths of a step on Model Runner V2: what attention reads is shorter, what sampling reads is not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vllm_prune.kv.lengths import CacheLengths


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
