"""The engine against the training code: `python -m benchmarks.stts.agreement --save`.

The same samples, budgets and scorer in vLLM and in `scorers.stts.training`: the kept cells have to be equal, and the
log-probabilities of the whole vocabulary at the answer's first token to agree within rounding, both in float32. How far
rounding goes is seen against the training code in float64, with the same cells kept.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

# Read by vLLM when it is imported.
os.environ.update(HF_HUB_OFFLINE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import numpy as np
import torch
import typer
from torch import Tensor

from vllm_prune.visual.scorers.stts import files
from vllm_prune.visual.scorers.stts.training import PrunedTower, pruned_logits

from ..demo_model.batches import collate
from ..machine import RESULTS, command_line, hardware
from ..tasks import Sample
from .arms import load_model
from .train import CHECKPOINT, held_out

KEEPS = (0.5, 0.3, 0.2)
RATE = 2.0
"""Frames per second of the generated videos."""


def engine(checkpoint: Path, dtype: str = "float32", **options: Any) -> Any:
    """An offline engine in this process."""
    from vllm import LLM

    defaults: dict[str, Any] = {
        "max_model_len": 4096, "max_num_seqs": 16, "enforce_eager": True, "kv_cache_memory_bytes": 256 << 20,
        "limit_mm_per_prompt": {"image": 1, "video": 1}, "max_logprobs": -1, "skip_mm_profiling": True,
        "distributed_executor_backend": "uni", "disable_log_stats": True,
    }  # fmt: skip
    return LLM(model=str(checkpoint), dtype=dtype, **{**defaults, **options})


def model_of(llm: Any) -> Any:
    """The model inside an engine of this process."""
    worker = llm.llm_engine.model_executor.driver_worker
    return getattr(worker, "worker", worker).model_runner.model


def prompt_of(one: Sample, words: Any, visual: dict[str, Any] | None) -> dict[str, Any]:
    """Prompt dict of `LLM.generate`; videos go in as frames, without a codec in between."""
    shown = one.media[0]
    kind = "video" if shown.video else "image"
    content = [{"type": kind}, {"type": "text", "text": one.question}]
    text = words.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
    medium: Any = (
        shown.frames[0] if kind == "image" else video_of(np.stack([np.asarray(frame) for frame in shown.frames]))
    )
    budget = {} if visual is None else {"mm_processor_kwargs": {"vllm_prune": visual}}
    return {"prompt": text, "multi_modal_data": {kind: [medium]}, **budget}


def video_of(frames: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Frames [T, height, width, 3] with the metadata that vLLM's processors read."""
    total = len(frames)
    return frames, {"fps": RATE, "total_num_frames": total, "duration": total / RATE, "do_sample_frames": False,
                    "frames_indices": list(range(total)), "video_backend": "opencv"}  # fmt: skip


@contextmanager
def listening() -> Iterator[list[Tensor]]:
    """Kept cells of every choice inside the tower of the engine in this process."""
    from vllm_prune.visual.tower import select

    found: list[Tensor] = []
    original = select.choose_cells

    def choose(*args: Any, **kwargs: Any) -> Tensor:
        kept = original(*args, **kwargs)
        found.append(kept.cpu())
        return kept

    select.choose_cells = choose
    try:
        yield found
    finally:
        select.choose_cells = original


def served(llm: Any, words: Any, one: Sample, keep: float) -> tuple[Tensor, Tensor]:
    """Kept cells, and log-probabilities of the first answer token, float32 [V]."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=1, logprobs=-1)
    with listening() as kept:
        [output] = llm.generate([prompt_of(one, words, {"strategy": "stts", "keep": keep})], sampling, use_tqdm=False)
    table = output.outputs[0].logprobs[0]
    found = torch.full((max(table) + 1,), -torch.inf)
    for token, entry in table.items():
        found[token] = entry.logprob
    return kept[0], found


@torch.no_grad()
def trained(
    model: Any, tower: PrunedTower, words: Any, one: Sample, keep: float, chosen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same from the training code, in the model's dtype; `chosen` are cells to keep in place of its own choice."""
    batch = collate([one], words)
    count = max(1, int(keep * int(np.prod(one.media[0].grid))))
    pick = None if chosen is None else lambda *_: chosen
    found = tower(batch.patches.to(model.dtype), batch.grid, [count], pick)
    logits, labels = pruned_logits(model, found, batch.tokens, batch.positions, batch.visual, batch.labels)
    first = int((labels[0] >= 0).nonzero()[0])
    return found.kept, logits[0, first].log_softmax(-1)


def compare(checkpoint: Path, samples: Sequence[Sample]) -> dict[str, Any]:
    """Differing kept sets and answers, and the largest difference of a log-probability, over samples and budgets."""
    llm = engine(checkpoint)
    model, words = load_model(checkpoint)
    tower = PrunedTower(model.model.visual, files.load(checkpoint / files.PLACE))
    double = copy.deepcopy(model).double()
    exact_tower = PrunedTower(double.model.visual, tower.scorer)
    sets = answers = total = 0
    worst = dict.fromkeys(("engine_training", "engine_float64", "training_float64"), 0.0)
    for one in samples:
        for keep in KEEPS:
            kept, logprobs = served(llm, words, one, keep)
            expected, reference = trained(model, tower, words, one, keep)
            total += 1
            sets += not torch.equal(kept, expected)
            answers += int(logprobs.argmax()) != int(reference.argmax())
            # Improbable tokens differ in nothing but noise.
            likely = reference > -20
            _, exact = trained(double, exact_tower, words, one, keep, expected)
            found = {"engine": logprobs[: len(reference)], "training": reference, "float64": exact}
            for pair in worst:
                ours, theirs = (found[name].double() for name in pair.split("_"))
                worst[pair] = max(worst[pair], float((ours - theirs)[likely].abs().max()))
    return {"requests": total, "samples": len(samples), "kept_sets_that_differ": sets, "answers_that_differ": answers,
            "largest_logprob_difference": worst}  # fmt: skip


def main(
    n: Annotated[int, typer.Option(help="Held-out screens.")] = 30,
    videos: Annotated[int, typer.Option(help="Held-out videos.")] = 20,
    checkpoint: Annotated[Path, typer.Option(help="The model with its scorer.")] = CHECKPOINT,
    save: Annotated[bool, typer.Option(help="Write the result under benchmarks/results/.")] = False,
) -> None:
    """Compare and print; exits with 1 where a kept set or an answer differs."""
    found = compare(checkpoint, held_out(n, videos))
    typer.echo(json.dumps(found, indent=1))
    if save:
        command = command_line("benchmarks.stts.agreement")
        whole = {"command": command, "hardware": hardware(), **found}
        (RESULTS / "stts_agreement.json").write_text(json.dumps(whole, indent=1) + "\n")
    raise typer.Exit(1 if found["kept_sets_that_differ"] or found["answers_that_differ"] else 0)


if __name__ == "__main__":
    typer.run(main)
