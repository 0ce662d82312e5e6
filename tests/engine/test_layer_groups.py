"""Groups of layers with block tables of their own: each keeps rows of its own, and the others stay as they are."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from vllm_prune.budget.kv import KEY, KvSpec
from vllm_prune.catalogue import KV

from . import media
from .cache_groups import assert_nothing_left, managers, preemptions, run_with_aborts
from .checkpoints import CELL
from .engines import EnginePool, answer_of, generate, reset, runner_of
from .eviction import EVICTING, evict, free_blocks, reports, scheduler_of
from .layer_groups import LayeredEvictor, Stairs, compare_with_layered, journal_by_layer, options
from .matrix import UNIFORM
from .media import Request
from .oracle import Mismatch, Oracle, compare
from .test_kv_groups import generate as generate_tokens
from .test_kv_groups import tokens

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.runner("v1", "groups of layers are refused on V2"),
]
CHUNK = 96
STEPS = 44
SPECS = [
    KvSpec("stairs", keep="0.6", buffer=16),
    KvSpec("pyramid_kv", keep="0.3", buffer=16),
    KvSpec("visual_exit", keep="0.01"),
    KvSpec("visual_exit", keep="0.9", window=4),
    KvSpec("random", keep="0.5", buffer=20),
    None,
]


@pytest.fixture(autouse=True, scope="module")
def stairs() -> Iterator[None]:
    """Engines of these tests know the strategy."""
    with KV.including(Stairs):
        yield


def requests_of(family: str) -> list[Request]:
    """Pictures, videos and both, whole and pruned."""
    cell, half = CELL[family], {**UNIFORM, "keep": 0.5}
    pictures = [media.image(6 * cell, 7 * cell, seed) for seed in range(3)]
    clip = media.video(6, 4 * cell, 5 * cell, seed=5)
    return [
        media.ask(*pictures),
        media.ask(pictures[0], clip),
        media.ask(*pictures, visual=half),
        media.ask(clip, pictures[1], visual=half),
        media.ask(pictures[2]),
        media.ask(pictures[1], pictures[2]),
    ]


TWO, THREE = (2,), (1, 2)


@pytest.fixture(params=[TWO, THREE], ids=["two", "three"])
def starts(request: pytest.FixtureRequest) -> tuple[int, ...]:
    """First layers of the later groups: vLLM makes three cache groups of both, in the first case two for one group."""
    return request.param


def engine_of(engines: EnginePool, family: str, starts: tuple[int, ...] = TWO, **more: Any) -> Any:
    """An engine with cold caches."""
    return engines.get(family, **{"max_num_batched_tokens": CHUNK, **options(starts), **more})


def test_logits_are_those_of_the_masked_reference(
    family: str, starts: tuple[int, ...], engines: EnginePool, oracles: Callable[[str], Oracle]
) -> None:
    llm = engine_of(engines, family, starts)
    before = free_blocks(llm)
    # Cold, then with every prompt in the prefix cache.
    for _ in range(2):
        compactions = compare_with_layered(llm, requests_of(family), SPECS, STEPS, oracles(family), starts)
        stairs, pyramid, *exits, uniform = compactions
        assert min(*stairs, *pyramid, *uniform) > 1
        assert exits == [[0, *[1] * len(starts)]] * 2
        assert free_blocks(llm) == before
        assert not any(manager.req_to_blocks for manager in managers(llm))


def test_lengths_of_another_group_are_noticed(
    family: str, engines: EnginePool, oracles: Callable[[str], Oracle]
) -> None:
    llm = engine_of(engines, family)
    lengths = runner_of(llm).kv_group_lengths
    assert len(lengths) == 2
    lengths.reverse()
    try:
        with pytest.raises(Mismatch):
            compare_with_layered(llm, requests_of(family)[:1], SPECS[:1], 8, oracles(family), TWO)
    finally:
        lengths.reverse()
    reset(llm)
    compare_with_layered(llm, requests_of(family)[:1], SPECS[:1], 8, oracles(family), TWO)


def test_rows_of_another_group_are_noticed(family: str, engines: EnginePool, oracles: Callable[[str], Oracle]) -> None:
    """The oracle loses in its first layers what the engine has evicted from the last."""
    llm = engine_of(engines, family, THREE)
    request, spec, oracle = requests_of(family)[0], KvSpec("random", keep="0.3", buffer=60), oracles(family)
    with journal_by_layer() as recorded:
        [output] = evict(llm, [request], [spec], 12)
    kept = recorded[output.request_id]
    prompt, counts = len(output.prompt_token_ids), [spec.count(len(output.prompt_token_ids))] * 3
    right = LayeredEvictor(prompt, THREE, counts, spec.buffer, kept)
    compare(answer_of(output), oracle.answer(request, 12, right))
    assert right.compactions == [1, 1, 1]
    wrong = LayeredEvictor(prompt, THREE, counts, spec.buffer, {0: kept[2], 1: kept[1], 2: kept[0]})
    with pytest.raises(Mismatch):
        compare(answer_of(output), oracle.answer(request, 12, wrong))


def test_an_exit_frees_the_visual_rows_of_late_layers(engines: EnginePool) -> None:
    family = "qwen2_5_vl"
    llm = engine_of(engines, family, THREE)
    [request], spec = requests_of(family)[:1], KvSpec("visual_exit", keep="0.01", ticket="t")
    scheduler, size = scheduler_of(llm), scheduler_of(llm).block_size
    held, compact = [], scheduler.compacting.compact

    def watch(request_id: str, lengths: Any) -> Any:
        lengths = list(lengths)
        before = [len(manager.req_to_blocks[request_id]) for manager in managers(llm)]
        result = compact(request_id, lengths)
        held.append((before, [len(manager.req_to_blocks[request_id]) for manager in managers(llm)], lengths))
        return result

    scheduler.compacting.compact = watch
    try:
        with reports() as reported:
            [output] = evict(llm, [request], [spec], 20)
    finally:
        del scheduler.compacting.compact
    [(before, after, lengths)] = held
    prompt = len(output.prompt_token_ids)
    pads = llm.llm_engine.model_config.hf_config.image_token_id
    text = sum(token != pads for token in output.prompt_token_ids)
    assert before == [-(-prompt // size)] * 3
    assert lengths == [(1, prompt, text), (2, prompt, text)]
    assert after == [before[0], -(-text // size), -(-text // size)]
    assert after[1] < before[1]
    report, fewer = reported[output.request_id], before[1] - after[1]
    assert report["layer_groups"] == [
        {"first_layer": 0, "kept_tokens": prompt, "freed_blocks": 0},
        {"first_layer": 1, "kept_tokens": text, "freed_blocks": fewer},
        {"first_layer": 2, "kept_tokens": text, "freed_blocks": fewer},
    ]
    assert report["freed_blocks"] == 2 * fewer
    assert report["kept_tokens"] == (prompt + 2 * text) // 3
    [clamped] = report["clamped"]
    assert clamped["reason"] == "text_kept"


def test_later_turns_find_the_prompt_and_nothing_else(engines: EnginePool) -> None:
    family = "qwen2_5_vl"
    llm = engine_of(engines, family)
    first, more = tokens(200, 1), tokens(50, 2)
    hits = {}
    for name, spec in (("without", None), ("with", SPECS[0])):
        reset(llm)
        answer, _ = generate_tokens(llm, first, spec, 100)
        following = [*first, *answer.tokens, *more]
        again, hits[name] = generate_tokens(llm, following, None, 8)
        reset(llm)
        cold, hit = generate_tokens(llm, following, None, 8)
        assert hit == 0
        compare(again, cold)
    assert hits["without"] > len(first) >= hits["with"] > len(first) - 32


def test_a_warm_prompt_keeps_what_a_cold_one_keeps(engines: EnginePool) -> None:
    """In every layer, also by strategies whose signals are stored by slot: each group has slots of its own."""
    family = "qwen3_vl"
    llm = engine_of(engines, family)
    requests = requests_of(family)[:4]
    specs = [
        KvSpec("pyramid_kv", keep="0.3"),
        KvSpec("gui_kv", keep="0.3"),
        KvSpec("star_kv", keep="0.3"),
        KvSpec("visual_exit", keep="0.8"),
    ]
    kept = []
    for more in (options(TWO), EVICTING):
        llm = engines.get(family, max_num_batched_tokens=CHUNK, **more)
        known = specs if more is not EVICTING else specs[1:3]
        asked = requests if more is not EVICTING else requests[1:3]
        for _ in range(2):
            with journal_by_layer() as recorded:
                outputs = evict(llm, asked, known, 3)
            kept.append([recorded[output.request_id] for output in outputs])
    cold, warm, *single = kept
    for before, after in zip(cold, warm, strict=True):
        assert_equal(before, after)
    # Strategies that divide nothing keep what they keep in one group.
    for alone in single:
        for before, after in zip(cold[1:3], alone, strict=True):
            assert_equal(before, after)


def assert_equal(before: dict[int, Any], after: dict[int, Any]) -> None:
    """What two runs kept, by layer."""
    assert before.keys() == after.keys()
    for layer, compactions in before.items():
        for one, other in zip(compactions, after[layer], strict=True):
            assert torch.equal(one, other)


def test_requests_leave_nothing_behind(engines: EnginePool) -> None:
    from vllm import SamplingParams

    llm = engine_of(engines, "qwen2_5_vl", max_num_batched_tokens=256, max_model_len=416, num_gpu_blocks_override=70)
    engine, rng, before = llm.llm_engine, random.Random(7), free_blocks(llm)
    shared, pictures = tokens(200, 3), [request.for_vllm() for request in requests_of("qwen2_5_vl")]
    budgets = [*SPECS, KvSpec("stairs", keep="0.9", buffer=60), KvSpec("pyramid_kv", max_tokens=50, buffer=7)]
    for i in range(60):
        prompt: Any = {"prompt_token_ids": shared[: rng.choice([0, 100, 200])] + tokens(rng.randrange(1, 80), i)}
        spec, prompt = rng.choice(budgets), rng.choice([prompt, prompt, rng.choice(pictures)])
        steps = rng.randrange(1, 130)
        if i < 12:
            # Compacted while there is room for them all, and then they grow.
            spec, prompt, steps = budgets[-2], {"prompt_token_ids": tokens(60, i)}, 150
        extra = {KEY: spec.wire()} if spec is not None else None
        sampling = SamplingParams(max_tokens=steps, ignore_eos=True, extra_args=extra)
        engine.add_request(f"r{i}", prompt, sampling)
    with preemptions(llm) as preempted:
        run_with_aborts(llm, 50, 10)
    assert any(preempted)
    assert_nothing_left(llm, before)


def test_without_budgets_answers_are_those_of_one_group(family: str, engines: EnginePool) -> None:
    answers = []
    for more in (options(TWO), EVICTING):
        llm = engines.get(family, max_num_batched_tokens=CHUNK, **more)
        for _ in range(2):
            outputs = generate(llm, requests_of(family), 20)
            answers.append([(output.num_cached_tokens, answer_of(output)) for output in outputs])
    cold, warm = answers[:2]
    assert answers[2:] == [cold, warm]
    assert any(cached for cached, _ in warm)
