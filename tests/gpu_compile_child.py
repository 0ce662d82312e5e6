"""Run by `test_gpu_compile.py`: compiles every Triton kernel for an H100, which needs none."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vllm_prune.kv import kernels as kv
from vllm_prune.visual.strategies.maths import kernels as visual

TARGET = GPUTarget("cuda", 90, 32)
SIZES = dict.fromkeys(("cache_block", "cache_head", "cache_slot"), "i32")


@triton.jit
def _changes_type(out, first, steps):  # type: ignore[no-untyped-def]
    # Triton's interpreter takes this, the compiler does not.
    pick = tl.load(first)
    for _ in range(1, steps):
        pick = tl.min(tl.arange(0, 16), 0)
    tl.store(out, pick)


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, int], warps: int = 4) -> int:
    """Bytes of the machine code."""
    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return len(triton.compile(source, target=TARGET, options={"num_warps": warps}).asm["cubin"])


def main() -> None:
    """All kernels, and one that must not compile."""
    gains = {
        "table": "*fp32",
        "lonely": "*fp32",
        "first": "*i64",
        "out": "*fp32",
        "n": "i32",
        "steps": "i32",
        "top": "fp32",
    }
    logits = {"queries": "*bf16", "cache": "*bf16", "slots": "*i64", "out": "*fp32",
              **dict.fromkeys(("rows", "first", "window", "group_rows", "block_size"), "i32"), "scale": "fp32",
              "query_row": "i32", **SIZES, "out_head": "i32", "out_row": "i32"}  # fmt: skip
    compact = {"cache": "*bf16", "kept": "*i64", "source": "*i64", "target": "*i64", "count": "i32",
               "block_size": "i32", **SIZES, "kept_head": "i32"}  # fmt: skip
    assert compiled(visual._max_min_gains, gains, {"BLOCK": 256}, 1)
    assert compiled(visual._max_min_gains, gains, {"BLOCK": visual.WIDEST}, 8)
    assert compiled(kv._window_logits, logits, {"DIM": 128, "TILE": kv.TILE})
    assert compiled(kv._compact, compact, {"WIDTH": 256, "TILE": kv.TILE})
    try:
        compiled(_changes_type, {"out": "*i64", "first": "*i64", "steps": "i32"}, {})
    except Exception as error:
        print("refused:", "Loop-carried variable" in str(error) or "Loop-carried variable" in str(error.__cause__))
    print("compiled")


main()
