"""Models with several cache groups: the rows of full attention are evicted, and every other group stays as it is."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from vllm_prune.budget.kv import KEY, KvSpec
from vllm_prune.kv.strategies.base import LayerView, window_attention
from vllm_prune.kv.strategies.gui_kv import GuiKv

from ..runner_v2 import asynchronous_scheduling
from . import cache_groups
from .cache_groups import (
    TextOracle,
    assert_nothing_left,
    fill_with_nan,
    lookups,
    managers,
    preemptions,
    run_with_aborts,
    zeroes,
)
from .engines import EnginePool, answer_of, reset, runner_of
from .eviction import EVICTING, SPECS, compare_with_masked, evict, free_blocks, journal, scheduler_of
from .families import float32_delta_nets
from .families.rows import ROWS
from .media import Request
from .oracle import Answer, Mismatch, Oracle, compare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EVERYTHING = os.environ.get("FAMILIES") == "full"
# A strategy whose signal a model does not give is refused by a front end, which is what launched workers count on.
LAUNCHED = {"vllm_prune": {"launched": True}}
STEPS = 44
TIGHT = KvSpec("snapkv", keep="0.2", buffer=8)


class Model:
    """A model with several cache groups, requests to it, and what transformers answers."""

    def __init__(self, name: str, engines: EnginePool, checkpoints: dict[str, Path], folder: Path) -> None:
        self.name, self.engines = name, engines
        if name in ROWS:
            float32_delta_nets.install()
            self.chunk, self.requests = 192, cache_groups.media_requests()
            self.oracle: Any = Oracle(checkpoints[name])
        else:
            checkpoints[name] = cache_groups.build_gemma3_text(folder / name)
            self.chunk, self.requests = 96, cache_groups.text_requests()
            self.oracle = TextOracle(checkpoints[name])

    def llm(self, **options: Any) -> Any:
        """Its engine with cold caches, which are full of NaN where vLLM zeroes a block before it is used."""
        sizes = {"max_num_batched_tokens": self.chunk, **options}
        llm = self.engines.get(self.name, additional_config=LAUNCHED, **sizes, **EVICTING)
        if zeroes(llm):
            fill_with_nan(runner_of(llm))
        return llm


@pytest.fixture(scope="module", params=["qwen3_5", "gemma3_text", *(["qwen3_5_moe"] if EVERYTHING else [])])
def model(
    request: pytest.FixtureRequest,
    engines: EnginePool,
    checkpoints: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Model:
    """Delta nets and full attention, or sliding windows and full attention; module-wide, so that engines are shared."""
    return Model(request.param, engines, checkpoints, tmp_path_factory.mktemp("groups"))


def generate(llm: Any, prompt: list[int], spec: KvSpec | None, steps: int) -> tuple[Answer, int]:
    """Greedy answer to a prompt of token ids, and how many of its tokens were found in the prefix cache."""
    from vllm import SamplingParams

    extra = {KEY: spec.wire()} if spec is not None else None
    sampling = SamplingParams(temperature=0, max_tokens=steps, ignore_eos=True, logprobs=0, extra_args=extra)
    [output] = llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
    return answer_of(output), output.num_cached_tokens


def tokens(count: int, seed: int) -> list[int]:
    """Token ids that are no special ones."""
    rng = random.Random(seed)
    return [rng.randrange(3, 250) for _ in range(count)]


def test_logits_are_those_of_the_masked_reference(model: Model) -> None:
    llm = model.llm()
    before = free_blocks(llm)
    # Cold, then with every prompt in the prefix cache.
    for _ in range(2):
        compactions = compare_with_masked(llm, model.requests, SPECS, STEPS, model.oracle)
        for count, spec in zip(compactions, SPECS, strict=True):
            assert count == 0 if spec is None or spec.max_tokens == 4096 else count > 1
        assert free_blocks(llm) == before
        assert not any(manager.req_to_blocks for manager in managers(llm))


@pytest.mark.skipif(not EVERYTHING, reason="more engines, for options that operators choose")
@pytest.mark.parametrize(
    "options", [{"prefix_match_unit": 32}, {"enable_prefix_caching": False}], ids=["hits inside a block", "no hits"]
)
def test_other_prefix_caches(
    options: dict[str, Any], engines: EnginePool, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """What is shared of a block is copied before it is written to, in the group of full attention, too."""
    model = Model("qwen3_5", engines, checkpoints, tmp_path)
    llm = model.llm(**options)
    before, hits = free_blocks(llm), []
    for _ in range(2):
        outputs = evict(llm, model.requests, SPECS, 1)
        hits = [output.num_cached_tokens for output in outputs]
        compare_with_masked(llm, model.requests, SPECS, STEPS, model.oracle)
        assert free_blocks(llm) == before
    inside = [hit for hit in hits if hit % managers(llm)[-1].block_size]
    assert bool(inside) == ("prefix_match_unit" in options)
    assert bool(any(hits)) == ("prefix_match_unit" in options)


@pytest.mark.runner("v2", "vLLM's V1 runner for CPUs has no asynchronous output")
def test_answers_are_the_same_when_steps_are_scheduled_ahead(model: Model) -> None:
    with asynchronous_scheduling():
        llm = model.llm(async_scheduling=True)
    assert llm.llm_engine.engine_core.engine_core.batch_queue is not None
    before = free_blocks(llm)
    counts = compare_with_masked(llm, model.requests[:3], SPECS[:3], 40, model.oracle)
    assert min(counts[:2]) > 1
    assert free_blocks(llm) == before


def test_other_groups_with_cached_lengths_are_noticed(model: Model) -> None:
    llm = model.llm()
    runner = runner_of(llm)
    compare_with_masked(llm, model.requests[:1], SPECS[:1], STEPS, model.oracle)
    [[compacted]] = runner.kv_groups.members
    others = [group for i, groups in enumerate(runner.attn_groups) if i != compacted for group in groups]
    assert len(others) > 1
    for group in others:
        runner.kv_group_lengths[0]._wrap(group)
    try:
        reset(llm)
        with pytest.raises(Mismatch):
            compare_with_masked(llm, model.requests[:1], SPECS[:1], STEPS, model.oracle)
    finally:
        for group in others:
            del group.build_metadata, group.build_metadata_for_cudagraph_capture


def test_what_other_groups_left_in_a_block_is_noticed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = model.llm()
    compactor = runner_of(llm).kv_compactor
    assert compactor.clears == zeroes(llm) == (model.name in ROWS)
    monkeypatch.setattr(compactor, "clears", False)
    if zeroes(llm):
        with pytest.raises(Mismatch):
            compare_with_masked(llm, model.requests[:1], SPECS[:1], STEPS, model.oracle)


def test_what_follows_a_compaction_is_nobodys_prefix(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, first, more = model.llm(), tokens(400, 1), tokens(50, 2)
    # By default vLLM keeps what a prompt leaves in those groups; with this, also what decoding leaves.
    monkeypatch.setattr(scheduler_of(llm).kv_cache_manager.coordinator, "retention_interval", None)
    prefixes = {}
    for name, spec in (("without", None), ("with", TIGHT)):
        reset(llm)
        answer, _ = generate(llm, first, spec, 220)
        following = [*first, *answer.tokens, *more]
        with lookups(llm) as seen:
            again, _ = generate(llm, following, None, 8)
            _, hit = generate(llm, first + more, None, 1)
        prefixes[name] = seen[0].per_group, hit
        reset(llm)
        compare(again, generate(llm, following, None, 8)[0])
    assert all(length > len(first) for length in prefixes["without"][0])
    assert all(0 < length <= len(first) for length in prefixes["with"][0])
    assert prefixes["with"][1] == prefixes["without"][1] > 0


def test_a_warm_prompt_keeps_what_a_cold_one_keeps(model: Model) -> None:
    """A prefix hit leaves a full window to observe, and all groups agree on where it ends."""
    llm, request = model.llm(), model.requests[0]
    kept, hits = [], []
    for _ in range(2):
        with journal() as kept_rows, lookups(llm) as seen:
            [output] = evict(llm, [request], [TIGHT], STEPS)
        kept.append(kept_rows.of(int(output.request_id)))
        hits.append(seen[0])
    cold, warm = kept
    assert len(cold) > 1
    assert hits[0].hit == 0 < hits[1].hit <= hits[1].prompt - TIGHT.window
    for before, after in zip(cold[0], warm[0], strict=True):
        assert (before == after).all()


def test_views_hold_what_transformers_computes(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    request, seen = model.requests[0], []
    original = GuiKv.select

    def select(self: Any, view: LayerView, count: int) -> Any:
        seen.append(view)
        return original(self, view, count)

    monkeypatch.setattr(GuiKv, "select", select)
    evict(model.llm(), [request], [KvSpec("gui_kv", keep="0.4", buffer=30)], 3)
    [view] = seen
    keys, norms, attention = prefilled(model, request)
    torch.testing.assert_close(view.keys, keys, rtol=1e-4, atol=1e-4)
    assert view.saliency is not None
    assert view.normed_saliency is not None
    torch.testing.assert_close(torch.stack([view.saliency[0], view.normed_saliency[0]]), norms, rtol=1e-4, atol=1e-4)
    ours = window_attention(view).flatten(0, 1)
    torch.testing.assert_close(ours, attention[:, -view.window :], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def prefilled(model: Model, request: Request) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys of transformers' layer of full attention, norms before and behind its input norm, and its attention."""
    text = getattr(model.oracle.hf.model, "language_model", model.oracle.hf.model)
    layer, recorded = text.layers[-1], []

    def listen(module: Any, args: Any, output: Any) -> None:
        before = args[0][0] if args else None
        recorded.append((before, output[1] if isinstance(output, tuple) else output[0]))

    hooks = [module.register_forward_hook(listen) for module in (layer.input_layernorm, layer.self_attn)]
    kind, text.config._attn_implementation = text.config._attn_implementation, "eager"
    model.oracle.answer(request, 2, lambda layers, computed: recorded.append(layers[-1].keys[0].clone()))
    text.config._attn_implementation = kind
    for hook in hooks:
        hook.remove()
    (before, behind), (_, attention), keys = recorded[:3]
    return keys, torch.stack([before.norm(dim=-1), behind.norm(dim=-1)]), attention[0]


def test_only_the_group_of_full_attention_gives_blocks_back(model: Model) -> None:
    from vllm.v1.core.single_type_kv_cache_manager import MambaManager

    llm = model.llm()
    scheduler, freed, held = scheduler_of(llm), [], []
    compact = scheduler.compacting.compact

    def count(request_id: str, lengths: Any) -> Any:
        before = [list(manager.req_to_blocks[request_id]) for manager in managers(llm)]
        result = compact(request_id, lengths)
        after = [list(manager.req_to_blocks[request_id]) for manager in managers(llm)]
        changed = [i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
        assert [changed] == [list(scheduler.compacting.compacting)] == [list(runner_of(llm).kv_groups.members[0])]
        freed.append(result[0][1])
        states = [blocks for manager, blocks in zip(managers(llm), after, strict=True) if type(manager) is MambaManager]
        held.extend(sum(not block.is_null for block in blocks) for blocks in states)
        return result

    scheduler.compacting.compact = count
    try:
        evict(llm, model.requests[:1], [TIGHT], 4)
    finally:
        del scheduler.compacting.compact
    assert freed[0] > 1
    # What the documentation reckons with.
    assert set(held) <= {1, 2}
    assert bool(held) == (model.name in ROWS)


def test_requests_leave_nothing_behind(model: Model) -> None:
    from vllm import SamplingParams

    llm = model.llm(max_model_len=512, num_gpu_blocks_override=40)
    engine, rng, before = llm.llm_engine, random.Random(7), free_blocks(llm)
    shared = tokens(200, 3)
    for i in range(24):
        # The first ones are compacted while there is room for them all, and then grow.
        spec = rng.choice([TIGHT, KvSpec("random", max_tokens=50, buffer=7)])
        prompt, steps = shared[: rng.choice([0, 100, 200])] + tokens(rng.randrange(1, 80), i), rng.randrange(1, 200)
        if i < 12:
            spec, prompt, steps = KvSpec("random", keep="0.9", buffer=60), tokens(60, i), 150
        sampling = SamplingParams(temperature=1.0, max_tokens=steps, ignore_eos=i < 12, extra_args={KEY: spec.wire()})
        engine.add_request(f"r{i}", {"prompt_token_ids": prompt}, sampling)
    with preemptions(llm) as preempted:
        run_with_aborts(llm, 100, 50)
    assert any(preempted)
    assert_nothing_left(llm, before)
