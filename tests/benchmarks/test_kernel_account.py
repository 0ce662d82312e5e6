"""The account of kernels: what is counted, against counts done by hand, and the committed table against the code."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.kernel_account import ANSWER, BATCH, H100, LAUNCH, MEDIA, PAYS, Entry, Media, choice, compaction, ring
from benchmarks.machine import RESULTS
from benchmarks.shapes import EIGHT_B, SEVEN_B
from benchmarks.traffic import Counting, Traffic, meta
from vllm_prune.grid import Grid
from vllm_prune.visual.strategies.maths import diversity

SMALL = Media("small", 3, Grid(4, 6, 8))
ROWS = """
import json
from benchmarks import kernel_account
print(json.dumps([kernel_account.as_row(*one) for one in kernel_account.entries()]))
"""
"""In a process of its own: vLLM's worker for CPUs, once imported, replaces kernels by ones with other operators."""


def test_an_operator_reads_its_inputs_and_writes_its_output() -> None:
    with Counting() as counting:
        meta(10, 4) + meta(10, 4)
    assert counting.traffic == Traffic(1, 3 * 10 * 4 * 2)


def test_views_and_allocations_are_no_kernels() -> None:
    with Counting() as counting:
        torch.empty(5, 5, device="meta").view(25)[3:].unsqueeze(0).expand(7, -1).T.detach().to(torch.float32)
    assert counting.traffic == Traffic()


def test_a_conversion_is_a_kernel_also_in_inference_mode() -> None:
    values = meta(10, 4)
    for mode in (torch.inference_mode, torch.no_grad):
        with Counting() as counting, mode():
            values.float()
        assert counting.traffic == Traffic(1, 10 * 4 * (2 + 4))


def test_a_gather_reads_what_it_returns_and_an_expanded_input_counts_once() -> None:
    table, places = meta(1000, 8), torch.zeros(3, dtype=torch.int64, device="meta")
    with Counting() as counting:
        table.index_select(0, places)
    # Its second and third argument beside the rows: the axis is no tensor.
    assert counting.traffic == Traffic(1, 2 * 3 * 8 * 2 + 3 * 8)
    with Counting() as counting:
        meta(1, 8).expand(50, 8).neg()
    assert counting.traffic == Traffic(1, (8 + 50 * 8) * 2)


def test_an_out_tensor_is_written_only() -> None:
    one, out = meta(6), meta(6)
    with Counting() as counting:
        torch.minimum(one, one, out=out)
    assert counting.traffic == Traffic(1, 3 * 6 * 2)


def test_times_are_the_larger_of_bytes_and_launches() -> None:
    assert Entry(Traffic(10, 1), 1, 1.0).seconds == 10 * LAUNCH
    assert Entry(Traffic(1, int(H100.bytes)), 1, 1.0).seconds == pytest.approx(1.0)
    assert Entry(Traffic(1, 1, steps=1000), 1, 1.0).seconds > 1e-3
    assert Entry(Traffic(1, 1), 1, 1.0).gain == 0.0


def test_one_launch_takes_the_place_of_every_step_and_leaves_no_trace() -> None:
    before = diversity.gains_in_one_launch, diversity.launches_once
    by_steps, once = (choice("divprune", 0.5, on_gpu)(SEVEN_B, SMALL) for on_gpu in (False, True))
    assert by_steps is not None
    assert once is not None
    # 48 cells a frame, twice the even share of 24 picks; each step is a maximum, an addition, a read, a minimum.
    picks = 48
    assert by_steps.traffic.kernels - once.traffic.kernels > SMALL.items * 4 * (picks - 2)
    assert once.traffic.steps == SMALL.items * picks
    assert by_steps.traffic.steps == 0
    assert (diversity.gains_in_one_launch, diversity.launches_once) == before


def test_strategies_of_videos_take_no_part_for_images() -> None:
    assert choice("evs", 0.25)(SEVEN_B, Media("one", 1, Grid(1, 4, 4))) is None


def test_compaction_counts_layers_and_the_kernels_spare_most_launches() -> None:
    gathered, in_place = (compaction(kernels)(SEVEN_B, SMALL) for kernels in (False, True))
    assert gathered is not None
    assert in_place is not None
    assert in_place.traffic.kernels < 0.6 * gathered.traffic.kernels
    assert in_place.traffic.bytes < gathered.traffic.bytes
    deeper = compaction(True)(EIGHT_B, SMALL)
    assert deeper is not None
    per_layer = in_place.traffic.kernels / SEVEN_B.layers
    assert deeper.traffic.kernels == pytest.approx(per_layer * EIGHT_B.layers, rel=0.05)
    entry = ring(SEVEN_B, SMALL)
    assert entry is not None
    assert entry.traffic == Traffic(SEVEN_B.layers, BATCH * 2 * SEVEN_B.heads * SEVEN_B.head * 2 * SEVEN_B.layers)


@pytest.mark.slow
def test_the_committed_account_says_what_the_code_does() -> None:
    committed = json.loads((RESULTS / "kernel_account.json").read_text())
    assert (committed["answer_tokens"], committed["in_flight"], committed["pays_above"]) == (ANSWER, BATCH, PAYS)
    rows = json.loads(subprocess.check_output([sys.executable, "-c", ROWS], text=True, cwd=RESULTS.parents[1]))
    assert {row["media"] for row in rows} == {media.name for media in MEDIA}
    known = {(row["step"], row["model"], row["media"]): row for row in committed["rows"]}
    assert len(known) == len(rows)
    for row in rows:
        kept = known[row["step"], row["model"], row["media"]]
        # A few operators more or less do not change what the page says.
        assert row["kernels"] == pytest.approx(kept["kernels"], rel=0.1), row["step"]
        assert row["bytes"] == pytest.approx(kept["bytes"], rel=0.1), row["step"]
        assert row["pays"] == kept["pays"], row["step"]
