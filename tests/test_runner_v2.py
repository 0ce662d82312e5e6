"""Runner V2 on a CPU: a process that a test starts with these variables runs Triton kernels and chooses V2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import runner_v2

KERNEL = """
import torch
from vllm import envs
from vllm.triton_utils import HAS_TRITON, tl, triton

@triton.jit
def double(source, target, count, SIZE: tl.constexpr):
    index = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(target + index, tl.load(source + index, mask=index < count) * 2, mask=index < count)

from vllm.platforms.cpu import CpuPlatform
source, target = torch.arange(10), torch.zeros(10, dtype=torch.int64)
if HAS_TRITON:
    double[(2,)](source, target, 9, SIZE=8)
print(HAS_TRITON, envs.VLLM_USE_V2_MODEL_RUNNER, target.tolist(), CpuPlatform.check_and_update_config.__module__)
"""


def of_child(directory: Path, variables: dict[str, str]) -> str:
    """What the program prints in a process with these variables; a file, as the interpreter reads kernels' sources."""
    program = directory / "kernel.py"
    program.write_text(KERNEL)
    done = subprocess.run([sys.executable, program], env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_kernels_run_in_child_processes(tmp_path: Path) -> None:
    plain = {key: value for key, value in os.environ.items() if key not in runner_v2.VARIABLES}
    on = runner_v2.environment(plain)
    assert of_child(tmp_path, on) == f"True True {[*range(0, 18, 2), 0]} vllm.platforms.cpu"
    ahead = {**on, runner_v2.ASYNCHRONOUS: "1"}
    assert of_child(tmp_path, ahead).split()[-1] != "vllm.platforms.cpu"
    off = {**plain, "PYTHONPATH": on["PYTHONPATH"]}
    assert of_child(tmp_path, off) == f"False None {[0] * 10} vllm.platforms.cpu"


def test_the_folder_comes_first_and_once() -> None:
    once = runner_v2.environment({"PYTHONPATH": os.pathsep.join(("/a", str(runner_v2.SITE), "/b"))})
    assert once["PYTHONPATH"].split(os.pathsep) == [str(runner_v2.SITE), "/a", "/b"]
    assert runner_v2.environment(once) == once
