"""`python -m tests.engine.graphs_child CHECKPOINT OUT`: one engine under all modes of CUDA graphs, as JSON.

A process of its own: graphs in pieces are chosen when vLLM is imported, and the runner as well.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import emulated_graphs

from . import media
from .checkpoints import CELL
from .engines import EnginePool, answer_of, reset, runner_of
from .eviction import EVICTING, evict, journal
from .operators import decode_steps

FAMILY, STEPS, CHUNK, SEQUENCES = "qwen2_5_vl", 28, 96, 4
SIZES = {"FULL_DECODE_ONLY": (1, 2, 4), "FULL": (4, CHUNK), "PIECEWISE": (4, CHUNK), "FULL_AND_PIECEWISE": (4, CHUNK)}
"""Tokens of the captured graphs, by mode. One of `CHUNK` tokens takes every prefill."""
_MEMBERS = "vllm_prune.visual.models.member_positions"
VISUAL = "visual"
"""The case without a KV budget."""
MIXED, MIXED_STEPS = "mixed", (18, 4, 4, 4, 8)
"""The case in which a request with a KV budget arrives late and leaves early, and the tokens of its requests."""
STOCK = "vllm.model_executor.models.qwen2_5_vl:Qwen2_5_VLForConditionalGeneration"


@dataclass
class Run:
    """What an engine answered.

    Attributes:
        tokens, logprobs: of each request.
        kept: positions that each compaction of each request kept, per layer.
        steps: steps of the model.
        replayed: those in which a graph was replayed.
        observed: those that kept queries.
        observed_replayed: those of them in which a graph was replayed.
        kinds: per step whether it was eager (e), or replayed a graph that observes (o) or one that does not (p).
        seconds: time that it took.
    """

    tokens: list[list[int]]
    logprobs: list[list[float]]
    kept: list[list[list[Any]]]
    steps: int = 0
    replayed: int = 0
    observed: int = 0
    observed_replayed: int = 0
    kinds: str = ""
    seconds: float = 0.0


def cases() -> dict[str, tuple[list[media.Request], list[Any]]]:
    """Requests with their KV budgets, by strategy."""
    from vllm_prune.budget.kv import KvSpec

    cell = CELL[FAMILY]
    half: media.Visual = {"strategy": "uniform", "keep": 0.5}
    screens = [
        media.image(5 * cell, 6 * cell, 1),
        media.image(4 * cell, 7 * cell, 2),
        media.image(6 * cell, 4 * cell, 3),
    ]
    clip = media.video(6, 4 * cell, 5 * cell, seed=5)
    requests = [
        media.ask(*screens),
        media.ask(screens[0], screens[2], visual=half, question="where?"),
        media.ask(clip, visual={"strategy": "vqtoken_kmeans", "keep": 0.3, "options": {"positions": 8}}),
        media.ask(question="no picture"),
    ]

    def specs(name: str) -> list[KvSpec | None]:
        return [
            KvSpec(name, keep="0.5", buffer=8),
            KvSpec(name, max_tokens=20, buffer=6),
            None,
            KvSpec(name, keep="0.4", buffer=5),
        ]

    late = [media.ask(screens[1]), *(media.ask(question=f"no picture {n}") for n in range(3)), media.ask(screens[0])]
    return {name: (requests, specs(name)) for name in ("random", "snapkv", "gui_kv")} | {
        VISUAL: (requests, [None] * 4),
        MIXED: (late, [None] * 4 + [KvSpec("snapkv", keep="0.5", buffer=4)]),
    }


@contextmanager
def counted(runner: Any) -> Iterator[dict[str, Any]]:
    """Count the steps of the model meanwhile."""
    from . import graphs

    counts: dict[str, Any] = {"steps": 0, "replayed": 0, "observed": 0, "observed_replayed": 0, "kinds": ""}
    plain = graphs.plain_graphs(runner)
    observed: list[bool] = []
    execute, arm = runner.execute_model, runner.kv_store.arm

    def noted(plan: Any) -> None:
        observed.append(bool(plan.source))
        arm(plan)

    def step(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        before = emulated_graphs.STATE.replays
        observed.clear()
        result = execute(scheduler_output, *args, **kwargs)
        if scheduler_output.total_num_scheduled_tokens:
            replayed = emulated_graphs.STATE.replays > before
            for name, happened in (
                ("steps", True),
                ("replayed", replayed),
                ("observed", any(observed)),
                ("observed_replayed", replayed and any(observed)),
            ):
                counts[name] += happened
            counts["kinds"] += "e" if not replayed else "p" if emulated_graphs.STATE.last in plain else "o"
        return result

    runner.execute_model, runner.kv_store.arm = step, noted
    try:
        yield counts
    finally:
        del runner.execute_model, runner.kv_store.arm


def answered(llm: Any, requests: Sequence[media.Request], specs: Sequence[Any]) -> Run:
    """Run some requests at once."""
    reset(llm)
    started = time.perf_counter()
    with journal() as kept, counted(runner_of(llm)) as counts:
        outputs = evict(llm, requests, specs, MIXED_STEPS if len(requests) > SEQUENCES else STEPS)
    answers = [answer_of(output) for output in outputs]
    compactions = [[[rows.tolist() for rows in one] for one in kept.of(output.request_id)] for output in outputs]
    seconds = time.perf_counter() - started
    tokens, logprobs = [list(one.tokens) for one in answers], [list(one.logprobs) for one in answers]
    return Run(tokens, logprobs, compactions, **counts, seconds=seconds)


def compared(run: Run, eager: Run) -> dict[str, Any]:
    """How a run differs from the eager one."""
    pairs = [
        (one, other)
        for mine, theirs in zip(run.tokens, eager.tokens, strict=True)
        for one, other in zip(mine, theirs, strict=True)
    ]
    numbers = [
        (one, other)
        for mine, theirs in zip(run.logprobs, eager.logprobs, strict=True)
        for one, other in zip(mine, theirs, strict=True)
    ]
    counts = {name: value for name, value in asdict(run).items() if isinstance(value, int | float | str)}
    return {
        **counts,
        "tokens": len(pairs),
        "equal": sum(one == other for one, other in pairs),
        "compactions": [len(one) for one in run.kept],
        "kept_equal": run.kept == eager.kept,
        "kept_lengths_equal": [len(one) for one in run.kept] == [len(one) for one in eager.kept],
        "apart": max(abs(one - other) for one, other in numbers),
    }


def matrix(llm: Any, result: dict[str, Any]) -> None:
    """Every mode against eager, then the controls."""
    from . import graphs

    asked = cases()
    eager = {name: answered(llm, *one) for name, one in asked.items()}
    result["eager"] = {name: compared(run, run) for name, run in eager.items()}
    for mode, sizes in SIZES.items():
        result.setdefault("captured", {})[mode] = graphs.capture(llm, mode, sizes)
        # Visual budgets are part of every case; in full graphs also without a KV budget beside them.
        only = {VISUAL: "FULL", MIXED: "FULL_DECODE_ONLY"}
        names = [name for name in asked if only.get(name, mode) == mode]
        result[mode] = {name: compared(answered(llm, *asked[name]), eager[name]) for name in names}
    result["controls"] = {name: compared(run, eager[case]) for name, case, run in controls(llm, asked)}


def controls(llm: Any, asked: dict[str, Any]) -> Iterator[tuple[str, str, Run]]:
    """What must go wrong: each part in turn does not reach the graphs. Its name, the case, and the answers."""
    from . import graphs

    for name, case, module in (
        ("queries not captured", "snapkv", "vllm_prune.kv.query_window"),
        ("positions not captured", VISUAL, "vllm_prune.visual.models.positions"),
        ("norms not captured", "gui_kv", "vllm_prune.kv.saliency"),
    ):
        with pytest.MonkeyPatch.context() as patches:
            for one in (module, *((_MEMBERS,) if case == VISUAL else ())):
                patches.setattr(f"{one}.cuda_graphs", SimpleNamespace(capturing=lambda: False))
            # Outside a step the norms' store is armed, and captures fall outside.
            patches.setattr(runner_of(llm).kv_saliency, "armed", False)
            graphs.capture(llm, "FULL", SIZES["FULL"])
        yield name, case, answered(llm, *asked[case])
    graphs.capture(llm, "FULL", SIZES["FULL"])
    runner = runner_of(llm)
    with pytest.MonkeyPatch.context() as patches:
        choice = (
            (runner.cudagraph_manager, "observes") if hasattr(runner, "cudagraph_manager") else (runner, "_observes")
        )
        patches.setattr(*choice, lambda: False)
        yield "plain graphs for all", "snapkv", answered(llm, *asked["snapkv"])
    with pytest.MonkeyPatch.context() as patches:
        move_lengths(runner_of(llm), patches)
        yield "lengths elsewhere", "random", answered(llm, *asked["random"])


def move_lengths(runner: Any, patches: pytest.MonkeyPatch) -> None:
    """Let attention's metadata name lengths in a fresh tensor of each step; where graphs look they stay logical."""
    if not hasattr(runner, "kv_lengths"):
        shorten = runner._shorten

        def elsewhere(*args: Any) -> None:
            captured, runner.seq_lens = runner.seq_lens, runner.seq_lens.clone()
            shorten(*args)
            moved.append(captured)

        moved: list[Any] = []
        patches.setattr(runner, "_shorten", elsewhere)
        return
    lengths, begin = runner.kv_lengths, runner.kv_lengths.begin

    def begun(batch: Any, evicted: Any) -> Any:
        logical, captured = begin(batch, evicted), lengths.physical
        if captured is not None:
            lengths.physical = captured.clone()
            captured.copy_(logical.seq_lens)
        return logical

    patches.setattr(lengths, "begin", begun)


def decoded(llm: Any, spec: Any) -> dict[str, Any]:
    """Exact answers to three requests, the first with this KV budget, and the operators of their decode steps."""
    reset(llm)
    cell = CELL[FAMILY]
    requests = [media.ask(media.image(3 * cell, (4 + seed) * cell, seed)) for seed in range(3)]
    with decode_steps(llm) as steps:
        answers = [answer_of(output) for output in evict(llm, requests, [spec, None, None], 6)]
    return {"answers": [[*one.tokens, *(value.hex() for value in one.logprobs)] for one in answers], "operators": steps}


def beside_stock(pool: EnginePool, options: dict[str, Any], result: dict[str, Any]) -> None:
    """Decode steps in full graphs without a KV budget, with one, without one again; then those of stock vLLM."""
    from vllm import ModelRegistry
    from vllm.model_executor.model_loader import utils

    from vllm_prune.budget.kv import KvSpec

    from . import graphs

    started, llm, size = time.perf_counter(), pool.get(FAMILY, **options, **EVICTING), (SEQUENCES,)
    off: dict[str, Any] = result.setdefault("off", {})
    off["captured"] = graphs.capture(llm, "FULL_DECODE_ONLY", size)
    off["plain"] = [len(one.recorder.operators) for one in graphs.plain_graphs(runner_of(llm))]
    for name, spec in (("before", None), ("budget", KvSpec("snapkv", keep="0.5", buffer=64)), ("after", None)):
        off[name] = decoded(llm, spec)
    ModelRegistry.register_model("Qwen2_5_VLForConditionalGeneration", STOCK)
    utils._MODEL_ARCH_BY_HASH.clear()
    llm = pool.get(FAMILY, **options)
    off["stock captured"], off["stock"] = graphs.capture(llm, "FULL_DECODE_ONLY", size), decoded(llm, None)
    off["stock model"] = type(graphs._plain(runner_of(llm).model)).__module__
    pool.close()
    off["seconds"] = time.perf_counter() - started


def main(checkpoint: str, out: str) -> None:
    """Run one engine and write what it answered."""
    import torch

    torch.set_num_threads(1)
    # Memory that nothing has written is NaN: what reads the padding of a graph shows at once, not now and then.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    from . import graphs

    patches = pytest.MonkeyPatch()
    graphs.install(patches)
    pool = EnginePool({FAMILY: Path(checkpoint)})
    options: dict[str, Any] = {
        "max_num_batched_tokens": CHUNK,
        "max_num_seqs": SEQUENCES,
        "max_model_len": 512,
        "enable_prefix_caching": False,
        "kv_cache_memory_bytes": 32 << 20,
    }
    llm = pool.get(FAMILY, **options, **EVICTING)
    result: dict[str, Any] = {"runner": type(runner_of(llm)).__mro__[1].__name__}
    matrix(llm, result)
    beside_stock(pool, options, result)
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
