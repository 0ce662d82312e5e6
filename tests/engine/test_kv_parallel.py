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

from .oracle import TOLERANCE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]


def answers(path: Path, size: int, out: Path) -> list[Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.kv_parallel_child", str(path), str(size), str(out)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return list(json.loads(out.read_text()))


def test_two_ranks_answer_as_one(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    path = checkpoints["qwen2_5_vl"]
    one, two = (answers(path, size, tmp_path / f"{size}.json") for size in (1, 2))
    for (tokens, logprobs), (same, close) in zip(one, two, strict=True):
        assert tokens == same
        np.testing.assert_allclose(logprobs, close, atol=TOLERANCE)
