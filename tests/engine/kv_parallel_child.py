"""Run by `test_kv_parallel.py`: greedy answers under KV budgets of two tensor-parallel ranks, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vllm_prune.budget.kv import REPORT, KvSpec

from . import media
from .checkpoints import CELL
from .engines import DEFAULTS
from .eviction import EVICTING, evict

SPECS = [
    KvSpec("gui_kv", keep="0.3", buffer=16),
    KvSpec("snapkv", keep="0.2", buffer=16),
    KvSpec("random", keep="0.5", buffer=16),
    KvSpec("star_kv", keep="0.3", buffer=16),
    KvSpec("expected_attention", max_tokens=30, buffer=9),
    KvSpec("dyvte", keep="0.3"),
]

STEPS = 36
"""Tokens of an answer, in which every budget compacts more than twice, but for the one that does so once."""


def options(gates: str) -> dict[str, Any]:
    """Options of an engine that evicts, with those gates."""
    return {"additional_config": {"vllm_prune": {"weights": {"dyvte": gates}}}, **EVICTING}


def answers(llm: Any) -> list[Any]:
    """Number, tokens and log-probabilities of one request under every budget, in one batch, and what KV reports say.

    The last is None where the process takes reports off the outputs.
    """
    cell = CELL["qwen2_5_vl"]
    request = media.ask(media.image(6 * cell, 8 * cell, 1), media.image(5 * cell, 8 * cell, 2))
    found = []
    for output in evict(llm, [request] * len(SPECS), SPECS, STEPS):
        completion = output.outputs[0]
        chosen = zip(completion.token_ids, completion.logprobs, strict=True)
        logprobs = [entry[token].logprob for token, entry in chosen]
        report = (output.kv_transfer_params or {}).get(REPORT)
        found.append([output.request_id, list(completion.token_ids), logprobs, report])
    return found


def main(path: str, out: str, gates: str) -> None:
    """Start the ranks and write what they answer."""
    from vllm import LLM

    settings = {**DEFAULTS, **options(gates), "distributed_executor_backend": "mp"}
    Path(out).write_text(json.dumps(answers(LLM(model=path, tensor_parallel_size=2, **settings))))


if __name__ == "__main__":
    main(*sys.argv[1:])
