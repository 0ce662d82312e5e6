"""Real vLLM engines in this process, one alive at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import runner_v2
from .media import Request
from .oracle import Answer, Mismatch, compare

DEFAULTS: dict[str, Any] = {
    "enforce_eager": True,
    "dtype": "float32",
    "max_num_seqs": 16,
    "max_model_len": 2048,
    "max_num_batched_tokens": 2048,
    "block_size": 32,
    "kv_cache_memory_bytes": 64 << 20,
    "enable_prefix_caching": True,
    "distributed_executor_backend": "uni",
    "disable_log_stats": True,
    "limit_mm_per_prompt": {"image": 4, "video": 2},
    "skip_mm_profiling": True,
}
if torch.cuda.is_available():
    # Several processes share the GPU, and each would ask for nearly all of it.
    DEFAULTS["gpu_memory_utilization"] = 0.2


class EnginePool:
    """Gives engines by family and options. Asking for another one ends the one before."""

    def __init__(self, checkpoints: dict[str, Path]) -> None:
        self._checkpoints = checkpoints
        self._key: tuple[Any, ...] | None = None
        self._llm: Any = None

    def get(self, family: str, **options: Any) -> Any:
        """An `LLM` with cold caches."""
        key = (family, *sorted(options.items()))
        if key != self._key or self._llm.llm_engine.has_unfinished_requests():
            # A test that failed half-way leaves its requests behind; the next one shall not suffer.
            self.close()
            self._llm, self._key = start(self._checkpoints[family], **options), key
        reset(self._llm)
        return self._llm

    def close(self) -> None:
        """End the running engine and give its memory back."""
        if self._llm is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        self._llm = self._key = None
        gc.collect()
        cleanup_dist_env_and_memory()


def start(path: Path, **options: Any) -> Any:
    """A new `LLM`."""
    from vllm import LLM

    llm = LLM(model=str(path), **{**DEFAULTS, **options})
    assert llm.llm_engine.vllm_config.use_v2_model_runner == runner_v2.is_on()
    return llm


def reset(llm: Any) -> None:
    """Empty the prefix, processor and encoder caches."""
    assert llm.reset_prefix_cache()
    llm.llm_engine.reset_mm_cache()
    llm.llm_engine.reset_encoder_cache()


def runner_of(llm: Any) -> Any:
    """The model runner inside an engine."""
    worker = llm.llm_engine.model_executor.driver_worker
    return getattr(worker, "worker", worker).model_runner


def features_of(llm: Any) -> list[Any]:
    """vLLM's multimodal features of each request that an engine runs."""
    runner = runner_of(llm)
    if runner_v2.is_on():
        return list(runner.encoder_cache.mm_features.values())
    return [state.mm_features for state in runner.requests.values()]


def model_of(llm: Any) -> Any:
    """The model object inside an engine."""
    return runner_of(llm).model


def generate(llm: Any, requests: Sequence[Request], steps: int, logprobs: int = 0) -> list[Any]:
    """Greedy outputs of all requests, batched as the engine likes."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=steps, ignore_eos=True, logprobs=logprobs)
    return llm.generate([request.for_vllm() for request in requests], sampling, use_tqdm=False)


def answer_of(output: Any) -> Answer:
    """An engine's output in the oracle's terms."""
    completion = output.outputs[0]
    chosen = zip(completion.token_ids, completion.logprobs, strict=True)
    return Answer(
        tuple(output.prompt_token_ids),
        tuple(completion.token_ids),
        tuple(entry[token].logprob for token, entry in chosen),
    )


def compare_all(
    asked: Mapping[str, Request], outputs: Sequence[Any], again: Sequence[Any], expected: Callable[[Request], Answer]
) -> None:
    """Compare what an engine answered, with cold and with warm caches; the `Mismatch` names the request."""
    for (name, request), output, cached in zip(asked.items(), outputs, again, strict=True):
        wanted = expected(request)
        for answer in (answer_of(output), answer_of(cached)):
            try:
                compare(answer, wanted)
            except Mismatch as error:
                raise Mismatch(f"{name}: {error}") from None
