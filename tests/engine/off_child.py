"""`python -m tests.engine.off_child FAMILY CHECKPOINT OUT`: answers to requests without a budget, as JSON.

A process of its own, because whether our classes are registered is decided when vLLM loads its plugins.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from . import media
from .checkpoints import CELL
from .engines import generate, model_of, start

OPTIONS = {"max_num_batched_tokens": 96}
"""Chunked, so that media are split over steps as well."""


def requests(family: str) -> list[media.Request]:
    """20 requests: ten mixes of media, two questions each."""
    cell = CELL[family]
    a, b = media.image(4 * cell, 6 * cell, 1), media.image(5 * cell - 9, 4 * cell + 3, 2)
    v, u = media.video(8, 4 * cell, 5 * cell, seed=5), media.video(7, 3 * cell, 4 * cell, 24, 20, 6)
    mixes: list[tuple[Any, ...]] = [
        (), (a,), (a, b), (v,), (a, v), (u, b), (v, u), (v, a, u, b), (b, b), (a, b, a, u),
    ]  # fmt: skip
    return [media.ask(*mix, question=question) for mix in mixes for question in ("what is it?", "where?")]


def answers(llm: Any, family: str) -> list[dict[str, Any]]:
    """Two rounds over all requests; the second one is served from caches."""
    outputs = [output for _ in range(2) for output in generate(llm, requests(family), 16, logprobs=5)]
    return [
        {
            "prompt": list(output.prompt_token_ids),
            "tokens": list(output.outputs[0].token_ids),
            "cached": output.num_cached_tokens,
            # `hex` is exact, and equal for equal bits only.
            "logprobs": [
                {str(token): entry.logprob.hex() for token, entry in step.items()}
                for step in output.outputs[0].logprobs
            ],
        }
        for output in outputs
    ]


def played(llm: Any, family: str) -> dict[str, Any]:
    """What an engine answers, and which classes do so."""
    found = (type(model_of(llm)), type(llm.llm_engine.renderer.mm_processor))
    classes = [f"{cls.__module__}.{cls.__qualname__}" for cls in found]
    return {"classes": classes, "answers": answers(llm, family)}


def main(family: str, checkpoint: str, out: str) -> None:
    """Run one engine and write what it answered."""
    import torch

    torch.set_num_threads(1)
    Path(out).write_text(json.dumps(played(start(Path(checkpoint), **OPTIONS), family)))


if __name__ == "__main__":
    main(*sys.argv[1:])
