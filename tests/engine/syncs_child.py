"""Run by `test_gpu_syncs.py`: budgets of every strategy that does not wait by its nature, on one engine with graphs."""

from __future__ import annotations

import sys
from pathlib import Path

from vllm_prune.budget.kv import KvSpec
from vllm_prune.catalogue import KV, VISUAL

from .. import runner_v2
from . import media
from .checkpoints import CELL
from .engines import start
from .eviction import EVICTING, evict

FAMILY = "qwen2_5_vl"
CAPTURED = {"tower_attention", "projector", "scorer", "selector", "weights"}
"""Signals that wait for the ends of the tower's windows, or need weights that this checkpoint does not have."""
WAITING = ("fastvid", "holitom", "vcast", "vidcom2")
"""Listed in `tests/visual/test_host_syncs.py`: sizes follow from what they see."""


def main(checkpoint: str, gates: str) -> None:
    """Answer requests; a wait in a step ends the engine."""
    cell = CELL[FAMILY]
    picture, clip = media.image(6 * cell, 8 * cell, 1), media.video(6, 4 * cell, 5 * cell, seed=5)
    requests = []
    for name in VISUAL.names():
        if name not in WAITING and not CAPTURED & VISUAL.strategy_class(name).needs:
            shown = picture if "image" in VISUAL.strategy_class(name).modalities else clip
            requests.append(media.ask(shown, visual={"strategy": name, "keep": 0.5}))
    specs: list[KvSpec | None] = [None] * len(requests)
    for name in KV.names():
        if KV.strategy_class(name).layered and runner_v2.is_on():
            continue
        requests.append(media.ask(picture, media.image(5 * cell, 8 * cell, 2)))
        specs.append(KvSpec(name, keep="0.4", buffer=16))
    # Some strategies divide their budget over groups of layers, which are refused on V2.
    facts = {"launched": True, "layer_groups": [] if runner_v2.is_on() else [2], "weights": {"dyvte": gates}}
    groups = {"additional_config": {"vllm_prune": facts}, **EVICTING}
    llm = start(Path(checkpoint), enforce_eager=False, max_num_batched_tokens=512, dtype="bfloat16", **groups)
    outputs = evict(llm, requests, specs, 60)
    assert all(len(output.outputs[0].token_ids) == 60 for output in outputs)
    print("no wait")


if __name__ == "__main__":
    main(*sys.argv[1:])
