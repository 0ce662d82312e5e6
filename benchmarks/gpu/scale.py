"""How large everything is: the published shapes for a GPU, and a tiny run of the same steps for a CPU."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

from .. import shapes
from ..servers import UNBOUND
from ..shapes import GIB, Shape
from ..speed.arms import EVS, OURS, STOCK, VIDCOM2, pruning_arguments
from ..speed.fleet import Plan
from ..speed.workloads import GPU, TINY, Sizes, Workload, workloads

RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
GRAPHS = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 24, 32]}
"""CUDA graphs for decoding, no compilation, which takes a minute per server and gains such long prefills little."""
ON_CPU = {**UNBOUND, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_PRUNE_PRELOADED": "1"}
"""On a CPU: beside others, and with the worker in the engine's process, as on one GPU."""
WORKING_BYTES = 4 * GIB
"""A server's memory beside weights and cache: activations, encoder, graphs, CUDA itself."""
USABLE = 0.94
WORDS = 12
"""Random words in front of shared screenshots, so that no two requests have a prefix in common."""
LEAST_CACHE = 3 * GIB


@dataclass(frozen=True)
class Scale:
    """Sizes of a run.

    Attributes:
        name: "full" or "tiny".
        cuda: whether there is a CUDA device.
        memory: bytes of the device's memory.
        shapes: models by name; the one that users have most is first.
        sizes: of media and answers.
        turn_answer, short_answer: tokens of answers where the pool is tight and where it is ample.
        cap: rows that the cache of the long answer keeps.
        levels: requests in flight, most telling first.
        requests: in a round, by level.
        tight, ample: requests in flight that do not and that do fit in the cache.
        patience: factor on the limits of the steps; a CPU is slow to start servers and may be busy.
        rounds: wanted of each measurement.
        quiet: seconds of pause before a measurement.
        start_seconds, stop_seconds: limits for a server.
        at_once: servers that start at the same time.
    """

    name: str
    cuda: bool
    memory: int
    shapes: tuple[Shape, ...]
    sizes: Sizes
    turn_answer: int
    short_answer: int
    cap: int
    levels: tuple[int, ...]
    requests: dict[int, int]
    tight: int
    ample: int
    rounds: int
    patience: float
    quiet: float
    start_seconds: float
    stop_seconds: float
    at_once: int
    runners: tuple[str, ...] = field(default=("v2", "v1"))

    @property
    def workloads(self) -> dict[str, Workload]:
        """By name."""
        return workloads(self.sizes)

    def turns(self, tokens: int) -> Workload:
        """Requests of five screenshots, the same in all of them, behind a text that differs."""
        return replace(self.workloads["five screenshots"], shared=True, words=WORDS, tokens=tokens)

    @property
    def longest(self) -> int:
        """Rows of the longest request of any step."""
        answers = (self.turn_answer, self.short_answer, self.sizes.long_answer)
        return max(one.rows for one in (*self.workloads.values(), *map(self.turns, answers)))

    def peers(self, shape: Shape) -> list[str]:
        """Servers of a model, those first without which nothing can be compared."""
        pruning = [VIDCOM2, EVS] if shape.family is shapes.Family.qwen3_vl else [EVS]
        return [STOCK, OURS, *pruning]

    def fitting(self, shape: Shape) -> tuple[list[str], int]:
        """Servers that have room beside each other, and the bytes of each one's cache."""
        names, wanted = self.peers(shape), self.wanted_cache(shape)
        if not self.cuda:
            return names[:3], GIB
        while True:
            room = int(USABLE * self.memory) // len(names) - shape.weight_bytes - WORKING_BYTES
            if room >= min(wanted, LEAST_CACHE) or len(names) == 2:
                return names, max(1 << 30, min(room, wanted))
            names = names[:-1]

    def wanted_cache(self, shape: Shape) -> int:
        """Bytes that hold a full round of the largest load, with a twentieth to spare."""
        rows = max(self.workloads[name].rows for name in ("video", "screenshot"))
        return int(1.05 * max(self.levels) * rows * shape.row_bytes)

    def plan(self, name: str, server: str, shape: Shape, cache: int, runner: str) -> Plan:
        """One server of a model with random weights.

        Args:
            name: in the fleet.
            server: which kind, see `speed.arms`.
            shape: of the model.
            cache: bytes of its KV cache.
            runner: "v1" or "v2".
        """
        given = [
            "--load-format", "dummy", "--skip-mm-profiling", "--kv-cache-memory-bytes", str(cache),
            "--max-model-len", str(self.longest), "--max-num-seqs", str(max(self.tight, *self.levels)),
            "--limit-mm-per-prompt", json.dumps({"image": 5, "video": 1}), "--mm-processor-cache-gb", "40",
            "--media-io-kwargs", json.dumps({"video": {"num_frames": self.sizes.video[0]}}),
            *pruning_arguments(server, 0.25, self.cuda), *self.device_arguments,
        ]  # fmt: skip
        if self.cuda:
            given += ["--max-num-batched-tokens", "8192", "--compilation-config", json.dumps(GRAPHS)]
        else:
            # The cache of the tiny run's processor outputs counts as memory that the engine reserves.
            given[given.index("--mm-processor-cache-gb") + 1] = "1"
        kind = "prune" if server == OURS else "stock"
        fallback = ("--enforce-eager",) if self.cuda else ()
        return Plan(name, kind, tuple(given), self.environment(runner), fallback)

    @property
    def device_arguments(self) -> list[str]:
        """What a server needs to run here at all, beside others."""
        if self.cuda:
            # Memory is set by --kv-cache-memory-bytes; this only has to be less than what is free.
            return ["--gpu-memory-utilization", "0.02"]
        return ["--dtype", "float32", "--enforce-eager", "--gpu-memory-utilization", "0.2", "--block-size", "32",
                "--distributed-executor-backend", "uni"]  # fmt: skip

    def environment(self, runner: str) -> dict[str, str]:
        """Variables of a server; development mode has the routes that empty caches."""
        chosen = {RUNNER: "1" if runner == "v2" else "0"} if self.cuda else ON_CPU
        return {"VLLM_SERVER_DEV_MODE": "1", **chosen}


def full(memory: int) -> Scale:
    """For one H100 or H200."""
    return Scale(
        name="full", cuda=True, memory=memory, shapes=(shapes.SEVEN_B, shapes.EIGHT_B), sizes=GPU, turn_answer=256,
        short_answer=128, cap=1280, levels=(8, 32, 1), requests={1: 2, 8: 8, 32: 32}, tight=32, ample=4, rounds=5,
        patience=1, quiet=0.2, start_seconds=180, stop_seconds=8, at_once=4,
    )  # fmt: skip


def tiny(cuda: bool, memory: int = 0) -> Scale:
    """The same steps, small enough for a CPU."""
    return Scale(
        name="tiny", cuda=cuda, memory=memory, shapes=(shapes.TINY_2_5, shapes.TINY_3), sizes=TINY, turn_answer=8,
        short_answer=4, cap=24, levels=(2, 1), requests={1: 1, 2: 2}, tight=2, ample=1, rounds=1, patience=6, quiet=0.0,
        start_seconds=600, stop_seconds=8, at_once=4 if cuda else 3, runners=("v2", "v1") if cuda else ("v1",),
    )  # fmt: skip
