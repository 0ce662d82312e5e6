"""The Triton kernels equal their torch twins, run by Triton's interpreter and on a GPU, in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..triton_child import output_of

CHILD = Path(__file__).parent / "kernels_child.py"


@pytest.mark.slow
@pytest.mark.parametrize("interpreted", ["1", pytest.param("0", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("case", ["window_logits", "compact", "safe_in_place"])
def test_kernel_equals_its_twin(case: str, interpreted: str) -> None:
    # The twin multiplies in full float32.
    assert "checked" in output_of(CHILD, case, TRITON_INTERPRET=interpreted, TRITON_F32_DEFAULT="ieee")
