"""A compaction touches nobody else: shared prefixes stay intact and stay in the cache."""

from __future__ import annotations

import pytest

from vllm_prune.budget.kv import KvSpec

from . import media
from .checkpoints import CELL
from .engines import DEFAULTS, EnginePool, answer_of, reset
from .eviction import EVICTING, evict, free_blocks, journal
from .oracle import compare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FAMILY = "qwen2_5_vl"
STEPS = 40
TIGHT = KvSpec("snapkv", keep="0.2", buffer=8)
BLOCK = DEFAULTS["block_size"]


def test_neighbours_and_later_requests_are_answered_as_by_fresh_servers(engines: EnginePool) -> None:
    cell = CELL[FAMILY]
    shown = [media.image(6 * cell, 8 * cell, 1), media.image(5 * cell, 8 * cell, 2)]
    request, other = media.ask(*shown), media.ask(*shown, media.image(4 * cell, 4 * cell, 3))
    llm = engines.get(FAMILY, max_num_batched_tokens=64, **EVICTING)
    fresh = {}
    for name, asked, spec in (("full", request, None), ("tight", request, TIGHT), ("other", other, None)):
        reset(llm)
        fresh[name] = answer_of(evict(llm, [asked], [spec], STEPS)[0])
    assert fresh["tight"].logprobs != fresh["full"].logprobs
    reset(llm)
    before = free_blocks(llm)
    evict(llm, [request], [None], 1)
    together = evict(llm, [request, request, other, request], [TIGHT, None, None, TIGHT], STEPS)
    for output, name in zip(together, ("tight", "full", "other", "tight"), strict=True):
        assert output.num_cached_tokens > 0
        compare(answer_of(output), fresh[name])
    for name, spec in (("full", None), ("tight", TIGHT)):
        compare(answer_of(evict(llm, [request], [spec], STEPS)[0]), fresh[name])
    assert free_blocks(llm) == before


def test_the_next_turn_finds_the_same_prefix(engines: EnginePool) -> None:
    cell = CELL[FAMILY]
    shown = [media.image(6 * cell, 8 * cell, 1), media.image(6 * cell, 8 * cell, 2)]
    first, second = media.ask(*shown), media.ask(*shown, media.image(4 * cell, 4 * cell, 3))
    llm = engines.get(FAMILY, max_num_batched_tokens=64, **EVICTING)
    hits = {}
    for name, spec in (("without", None), ("with", TIGHT)):
        reset(llm)
        evict(llm, [first], [spec], STEPS)
        hits[name] = evict(llm, [second], [None], 2)[0].num_cached_tokens
    assert hits["with"] == hits["without"] > 32


def test_a_warm_prompt_keeps_what_a_cold_one_keeps(engines: EnginePool) -> None:
    """A prefix hit leaves a full window to observe, in whatever batch the request runs."""
    cell = CELL[FAMILY]
    shown, visual_tokens = [media.image(6 * cell, 8 * cell, 1), media.image(5 * cell, 8 * cell, 2)], 88
    busy = [media.ask(media.image(3 * cell, (3 + i) * cell, i)) for i in range(5)]
    llm = engines.get(FAMILY, max_num_batched_tokens=64, **EVICTING)
    # The prompt ends less than a window behind a block, so vLLM's longest hit would leave too few queries.
    asked = (media.ask(*shown, question="what is it?" + "?" * extra) for extra in range(BLOCK))
    tokens = llm.get_tokenizer().encode
    request = next(one for one in asked if (len(tokens(one.prompt)) - len(shown) + visual_tokens) % BLOCK == 4)
    kept = []
    for others in ([], [], busy):
        with journal() as found:
            outputs = evict(llm, [*others, request], [None] * (len(others) - 1) + [TIGHT] * (1 + bool(others)), STEPS)
        kept.append(found.of(int(outputs[-1].request_id)))
        assert len(outputs[-1].prompt_token_ids) % BLOCK == 4 < TIGHT.window
    cold, warm, mixed = kept
    assert len(cold) > 1
    for again in (warm, mixed):
        for before, after in zip(cold[0], again[0], strict=True):
            assert (before == after).all()
