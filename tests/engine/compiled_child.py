"""An engine whose model is compiled as on a GPU, into the cache of `VLLM_CACHE_ROOT`; prints what its hooks have kept.

vLLM's platform for CPUs neither splits nor caches compiled graphs. Here it does, without the passes that look for
kernels of a GPU.
"""

from __future__ import annotations

import json
import os
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import LLM, SamplingParams
from vllm.compilation.passes.utility.fix_functionalization import FixFunctionalizationPass
from vllm.config import CompilationMode
from vllm.platforms.cpu import CpuPlatform

from benchmarks.shapes import TINY_2_5, build


def compile_as_on_a_gpu() -> None:
    """Let vLLM compile piece by piece on a CPU."""
    as_on_cpu = CpuPlatform.check_and_update_config.__func__  # type: ignore[attr-defined]

    def check(cls: type[CpuPlatform], vllm_config: Any) -> None:
        as_on_cpu(cls, vllm_config)
        compilation = vllm_config.compilation_config
        compilation.mode, compilation.backend, compilation.compile_sizes = CompilationMode.VLLM_COMPILE, "inductor", []
        for name, value in vars(compilation.pass_config).items():
            if value is None or isinstance(value, bool):
                setattr(compilation.pass_config, name, False)

    CpuPlatform.check_and_update_config = classmethod(check)  # type: ignore[assignment]
    FixFunctionalizationPass.__call__ = lambda self, graph: None  # type: ignore[method-assign]


def main() -> None:
    """Answer one prompt."""
    compile_as_on_a_gpu()
    llm = LLM(
        str(build(TINY_2_5)), load_format="dummy", dtype="float32", max_model_len=256, max_num_batched_tokens=256,
        max_num_seqs=2, kv_cache_memory_bytes=64 << 20, worker_cls="vllm_prune.kv.worker.CompactingWorker",
        scheduler_cls="vllm_prune.kv.scheduler.CompactingScheduler", limit_mm_per_prompt={"image": 1, "video": 0},
    )  # fmt: skip
    llm.generate(["hello there , what is it ?"], SamplingParams(max_tokens=2))
    engine: Any = llm.llm_engine
    runner = engine.model_executor.driver_worker.worker.model_runner
    norms, places = runner.kv_saliency.norms[..., :-1], runner.kv_coordinates.places[:, :-1]
    mode = int(engine.vllm_config.compilation_config.mode)
    print(json.dumps({"mode": mode, "norms": int((norms != 0).sum()), "places": int((places != 0).sum())}))


if __name__ == "__main__":
    main()
