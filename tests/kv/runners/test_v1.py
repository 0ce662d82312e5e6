"""What of a step becomes physical on V1: lengths on both sides, and slots; positions of the text stay."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_prune.kv.layer_groups import LayerGroups
from vllm_prune.kv.runners.v1 import CompactingV1

CPU = torch.device("cpu")


class Table:
    """VLLM's block table of a group; keeps the positions that slots are computed from."""

    positions: list[int]

    def compute_slot_mapping(self, requests: int, starts: Tensor, positions: Tensor) -> None:
        assert starts.tolist() == [0, 1, 4]
        assert requests == 2
        self.positions = positions.tolist()


def runner() -> tuple[Any, list[Table]]:
    """Two requests of 1 and 3 tokens, behind a stale third row."""
    made, tables = object.__new__(CompactingV1), [Table(), Table()]
    made.device, made.kv_groups, made.kv_group_lengths = CPU, LayerGroups((0,), (1,), ((1,),)), []
    made.seq_lens = torch.tensor([50, 73, 9], dtype=torch.int32)
    made.optimistic_seq_lens_cpu = made.seq_lens.clone()
    made.positions = torch.tensor([49, 70, 71, 72, 9])
    made.query_start_loc = SimpleNamespace(gpu=torch.tensor([0, 1, 4, 4]))
    made.input_batch = SimpleNamespace(block_table=tables)
    return made, tables


def test_lengths_on_device_and_host_and_slots_are_those_of_the_cache() -> None:
    made, tables = runner()
    made._shorten(np.array([[0, 20]], dtype=np.int32), np.array([1, 3], dtype=np.int32))
    assert made.seq_lens.tolist() == [50, 53, 9]
    # Backends that plan on the host read these.
    assert made.optimistic_seq_lens_cpu.tolist() == [50, 53, 9]
    assert tables[1].positions == [49, 50, 51, 52]
    assert not hasattr(tables[0], "positions")
    assert made.positions.tolist() == [49, 70, 71, 72, 9]


def test_beside_other_groups_their_lengths_stay() -> None:
    made, tables = runner()
    begun: list[list[int]] = []
    made.kv_group_lengths = [SimpleNamespace(begin=lambda evicted: begun.append(evicted.tolist()))]
    made._shorten(np.array([[0, 20]], dtype=np.int32), np.array([1, 3], dtype=np.int32))
    assert begun == [[0, 20]]
    assert made.seq_lens.tolist() == made.optimistic_seq_lens_cpu.tolist() == [50, 73, 9]
    assert tables[1].positions == [49, 50, 51, 52]


def test_a_step_without_evicted_rows_is_vllms_own() -> None:
    made, tables = runner()
    made._shorten(np.zeros((1, 2), dtype=np.int32), np.array([1, 3], dtype=np.int32))
    assert made.seq_lens.tolist() == [50, 73, 9]
    assert not any(hasattr(table, "positions") for table in tables)


def test_every_group_of_layers_has_lengths_of_its_own() -> None:
    made, tables = runner()
    begun: list[tuple[int, list[int]]] = []
    made.kv_groups = LayerGroups((0, 2), (2, 1), ((0,), (1,)))
    made.kv_group_lengths = [
        SimpleNamespace(begin=lambda evicted, number=number: begun.append((number, evicted.tolist())))
        for number in range(2)
    ]
    made._shorten(np.array([[0, 20], [30, 40]], dtype=np.int32), np.array([1, 3], dtype=np.int32))
    assert begun == [(0, [0, 20]), (1, [30, 40])]
    assert tables[0].positions == [49, 50, 51, 52]
    assert tables[1].positions == [19, 30, 31, 32]
