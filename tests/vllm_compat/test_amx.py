"""Every process of vLLM may use what its kernels use."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

PERMITTED = """
import ctypes
from vllm_prune import register
register()
mask = ctypes.c_uint64()
SYS_ARCH_PRCTL, ARCH_GET_XCOMP_PERM, TILE_DATA = 158, 0x1022, 1 << 18
assert ctypes.CDLL(None).syscall(SYS_ARCH_PRCTL, ARCH_GET_XCOMP_PERM, ctypes.byref(mask)) == 0
assert mask.value & TILE_DATA, hex(mask.value)
"""


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="needs a processor with AMX")
def test_the_plugin_may_use_tiles() -> None:
    subprocess.run([sys.executable, "-c", PERMITTED], check=True)
