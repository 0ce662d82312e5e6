"""Where the time of a pruned video goes, in an engine of this process: `python -m benchmarks.gpu.tower_child SIZE WAY`.

Each block of the vision tower is timed on the device and on the processor that launches it, and a
profiler adds up the kernels of the whole request. Where launching takes as long as the blocks do, the device waits for
the processor; where it does not, the device is what takes the time. One line of JSON per length and budget. By the way
"graphs" the same requests are answered with vLLM's encoder graphs, whose blocks cannot be told apart.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from .. import shapes
from ..machine import has_cuda
from ..shapes import Shape
from ..speed.arms import stock, visual
from ..speed.bound import request_of, tower_operations
from ..speed.media import film
from ..speed.workloads import Workload
from ..stts.agreement import engine, model_of, video_of
from .scale import GRAPHS

FULL = {"frames": (128, 256), "side": 10, "repeats": 3, "room": 16384}
TINY = {"frames": (4,), "side": 3, "repeats": 1, "room": 512}
KERNELS = 12
MARK = "row "
"""What lines with figures begin with, among those that vLLM prints."""
PROMPT = "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>what is it ?<|im_end|>\n"


@dataclass
class Blocks:
    """Times of the tower's blocks in one request, in the order in which they ran.

    Attributes:
        rows: patches that a block saw.
        launch: seconds that the processor spent inside a block's call.
        events: begin and end of each block on the device, where there is one.
        first, last: when the first block was called and the last one returned, by the processor's clock.
    """

    rows: list[int] = field(default_factory=list)
    launch: list[float] = field(default_factory=list)
    events: list[tuple[Any, Any]] = field(default_factory=list)
    first: float = 0.0
    last: float = 0.0

    def watch(self, blocks: Any, cuda: bool) -> None:
        """Time every call of every block from now on; blocks that vLLM may compile do not call PyTorch's hooks."""
        for block in blocks:
            block.forward = self._timed(block.forward, cuda)

    def _timed(self, forward: Callable[..., Any], cuda: bool) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs.get("x", kwargs.get("hidden_states"))
            begin, started = _mark() if cuda else None, time.perf_counter()
            output = forward(*args, **kwargs)
            self.last = time.perf_counter()
            self.first = self.first or started
            self.rows.append(int(hidden.shape[0]))
            self.launch.append(self.last - started)
            self.events.append((begin, _mark() if cuda else None))
            return output

        return timed

    def clear(self) -> None:
        """Forget the last request."""
        self.rows, self.launch, self.events, self.first, self.last = [], [], [], 0.0, 0.0

    def seconds(self) -> dict[str, float]:
        """Sums: of the blocks on the device, from the first's begin to the last's end there, and of launching."""
        found = {"launch": sum(self.launch), "processor_span": self.last - self.first}
        if self.events and self.events[0][0] is not None:
            torch.cuda.synchronize()
            found["device"] = sum(begin.elapsed_time(end) for begin, end in self.events) / 1000
            found["device_span"] = self.events[0][0].elapsed_time(self.events[-1][1]) / 1000
        return found


def _mark() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def measure(shape: Shape, sizes: dict[str, Any], graphs: bool) -> Iterator[dict[str, Any]]:
    """Every length under no budget, and under 50% and 25% in the tower."""
    cuda, room = has_cuda(), sizes["room"]
    options: dict[str, Any] = {"load_format": "dummy", "max_model_len": room, "max_num_batched_tokens": room,
                               "max_num_seqs": 2, "gpu_memory_utilization": 0.02 if cuda else 0.2,
                               "kv_cache_memory_bytes": (2 << 30) if cuda else (64 << 20)}  # fmt: skip
    if graphs:
        tokens = [frames // 2 * sizes["side"] ** 2 for frames in sizes["frames"]]
        encoder = {
            "cudagraph_mm_encoder": True,
            "encoder_cudagraph_max_vision_items_per_batch": 1,
            "encoder_cudagraph_max_frames_per_batch": max(sizes["frames"]) // 2,
            "encoder_cudagraph_token_budgets": sorted({max(1, n // part) for n in tokens for part in (1, 2, 4)}),
        }
        options |= {"enforce_eager": False, "compilation_config": GRAPHS | encoder}
    llm = engine(shapes.build(shape), "bfloat16" if cuda else "float32", **options)
    blocks = Blocks()
    if not graphs:
        blocks.watch(model_of(llm).visual.blocks, cuda)
    for frames in sizes["frames"]:
        workload = Workload("video", 1, video=(frames, sizes["side"], sizes["side"]))
        for arm in (stock(), visual(0.5, "tower"), visual(0.25, "tower")):
            row = {"frames": frames, "visual_tokens": workload.visual_tokens, "arm": arm.name}
            runs = [_one(llm, shape, workload, arm, blocks) for _ in range(sizes["repeats"] + 1)][1:]
            best = min(runs, key=lambda run: run["seconds"])
            if graphs:
                yield row | {"graphs": True, "seconds": best["seconds"]}
                continue
            if not best["block_rows"]:
                raise RuntimeError("no block of the tower was called: it runs by another way than its blocks' forward")
            operations = tower_operations(shape, request_of(shape, workload, arm))
            profiled = _profiled(partial(_one, llm, shape, workload, arm, blocks))
            yield row | {"operations": operations} | best | profiled


def _profiled(run: Callable[[], Any]) -> dict[str, Any]:
    """What the profiler says of a request."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if has_cuda():
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profile:
        run()
    key = "self_device_time_total" if has_cuda() else "self_cpu_time_total"
    events = sorted(profile.key_averages(), key=lambda event: -getattr(event, key))
    kernels = [{"name": one.key[:100], "ms": getattr(one, key) / 1000, "calls": one.count} for one in events[:KERNELS]]
    return {"all_kernels_ms": sum(getattr(one, key) for one in events) / 1000, "kernels": kernels}


def _one(llm: Any, shape: Shape, workload: Workload, arm: Any, blocks: Blocks) -> dict[str, Any]:
    """One request of one token, from cold caches of keys and encoder outputs; the processor's output is cached."""
    from vllm import SamplingParams

    frames, rows, cols = workload.video or (0, 0, 0)
    prompt: dict[str, Any] = {
        "prompt": PROMPT, "multi_modal_data": {"video": [video_of(film(frames, (rows, cols), shape.cell, seed=1))]},
    }  # fmt: skip
    if arm.pruning is not None:
        prompt["mm_processor_kwargs"] = {"vllm_prune": arm.pruning["visual"]}
    llm.llm_engine.reset_encoder_cache()
    llm.reset_prefix_cache()
    blocks.clear()
    started = time.perf_counter()
    answer = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=1, ignore_eos=True), use_tqdm=False)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "prompt_tokens": len(answer[0].prompt_token_ids), "block_rows": list(blocks.rows),
            "block_launch_ms": [1000 * one for one in blocks.launch], "tower": blocks.seconds()}  # fmt: skip


def main(size: str, way: str) -> None:
    """Print each figure as soon as it is there."""
    full = size == "full"
    for row in measure(shapes.SEVEN_B if full else shapes.TINY_2_5, FULL if full else TINY, way == "graphs"):
        print(MARK + json.dumps(row), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
