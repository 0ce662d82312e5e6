"""How many patches of several items a tower takes at once, by device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_prune.visual.models.qwen_vl import CPU_PATCHES, patches_at_once


def config(device: str, tokens: int) -> Any:
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_encoder_input_tokens=tokens),
        device_config=SimpleNamespace(device_type=device),
    )


@pytest.mark.parametrize(("device", "tokens", "patches"), [
    ("cuda", 8192, 32768), ("cpu", 8192, CPU_PATCHES), ("cpu", 100, 400), ("cuda", 100, 400),
])  # fmt: skip
def test_a_cpu_takes_no_more_than_fits_its_heap(device: str, tokens: int, patches: int) -> None:
    assert patches_at_once(config(device, tokens), 4) == patches
