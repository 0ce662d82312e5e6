"""Tensor parallelism on CPU: two ranks evict, head by head, what one process evicts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .. import runner_v2
from .engines import EnginePool
from .eviction import reports
from .kv_parallel_child import answers, options
from .oracle import TOLERANCE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]


def of_two_ranks(path: Path, out: Path, gates: Path) -> list[Any]:
    # Two ranks of two threads each would wait for each other on two cores that another test uses, too.
    few = {"OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.kv_parallel_child", str(path), str(out), str(gates)],
        cwd=ROOT,
        env=runner_v2.in_child({**os.environ, "PYTHONPATH": str(ROOT), **few}),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return list(json.loads(out.read_text()))


def test_two_ranks_answer_as_one(
    engines: EnginePool, checkpoints: dict[str, Path], gates: Path, tmp_path: Path
) -> None:
    with reports() as of_one:
        one = answers(engines.get("qwen2_5_vl", **options(str(gates))))
    engines.close()
    two = of_two_ranks(checkpoints["qwen2_5_vl"], tmp_path / "answers.json", gates)
    assert len(one) == len(two)
    for (number, tokens, logprobs, _), (_, same, close, of_two) in zip(one, two, strict=True):
        assert tokens == same
        assert of_one[number]["compactions"] == of_two["compactions"]
        assert of_two["compactions"] == 1 if of_two["strategy"] == "dyvte" else of_two["compactions"] > 2
        np.testing.assert_allclose(logprobs, close, atol=TOLERANCE)
