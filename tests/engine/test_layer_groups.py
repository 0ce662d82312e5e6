"""Layer groups."""
from __future__ import annotations
import pytest
from . import media
from .checkpoints import CELL
from .engines import EnginePool, answer_of, generate, reset
from .eviction import EVICTING, scheduler_of, free_blocks
from .matrix import UNIFORM

def requests_of(family):
    cell = CELL[family]
    pictures = [media.image(6 * cell, 7 * cell, seed) for seed in range(3)]
    clip = media.video(6, 4 * cell, 5 * cell, seed=5)
    half = {**UNIFORM, "keep": 0.5}
    return [media.ask(*pictures), media.ask(*pictures, visual=half), media.ask(pictures[0], clip), media.ask(clip, pictures[1], visual=half), media.ask(pictures[2])]

@pytest.mark.parametrize("starts", [[2], [1, 2]])
def test_start(family, engines, starts):
    answers = []
    for groups in ([], starts):
        llm = engines.get(family, max_num_batched_tokens=96, additional_config={"vllm_prune": {"launched": True, "layer_groups": groups}}, **EVICTING)
        print("GROUPS", [ (g.layer_names, getattr(g.kv_cache_spec,'first_layer',None)) for g in scheduler_of(llm).kv_cache_manager.kv_cache_config.kv_cache_groups], free_blocks(llm))
        for _ in range(2):
            answers.append([(o.num_cached_tokens, answer_of(o)) for o in generate(llm, requests_of(family), 20)])
    a,b,c,d = answers
    print([x[0] for x in a],[x[0] for x in b],[x[0] for x in c],[x[0] for x in d])
    assert a == c and b == d
