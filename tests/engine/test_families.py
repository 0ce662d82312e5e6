"""Families beside Qwen2.5-VL and Qwen3-VL: answers against transformers, and without a budget against stock vLLM.

`FAMILIES=full pytest tests/engine/test_families.py` asks the whole matrix; otherwise a choice of it is asked.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vllm_prune.budget.errors import BudgetError
from vllm_prune.budget.kv import KvSpec
from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid
from vllm_prune.visual.models import derived
from vllm_prune.visual.models.table import ADAPTERS, FAMILIES, Family
from vllm_prune.visual.strategies._merging import MergingOptions
from vllm_prune.visual.strategies.base import Context
from vllm_prune.visual.strategies.cdpruner import CdPruner

from . import oracle as qwen
from .by_index import NAME, ByIndex
from .engines import EnginePool, answer_of, generate, model_of, reset, runner_of
from .eviction import EVICTING, Evictor, evict, journal
from .families import contiguous_products, float32_delta_nets, interleaved_rotation
from .families.oracle import FamilyOracle
from .families.rows import BUDGETS, ROWS, STEPS, Row, ask, cases, for_engine, requests
from .families.vllm_prompt import VllmPromptOracle
from .media import Request
from .oracle import TOLERANCE, Answer, Expected, Mismatch, compare
from .rotations import of_members, rotating

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EVERYTHING = os.environ.get("FAMILIES") == "full"


class Compact(qwen.Oracle):
    """Visual tokens count one by one, as text does, and none is missing from the count."""

    def positions(self, ids: Tensor, literal: Tensor, items: Any) -> tuple[Tensor, int]:
        return torch.arange(len(ids)).expand(3, -1).clone(), len(ids)


class Merging(FamilyOracle):
    """Tokens merged by number, each with its members' positions; for items that are one run."""

    def __init__(self, path: Path, row: Row, positions: int) -> None:
        super().__init__(path, row)
        self.strategy, self.count = ByIndex(MergingOptions(positions=positions)), positions

    def laid_out(self, inputs: Any) -> tuple[Tensor, Tensor]:
        self.embeddings, self.positions = super().laid_out(inputs)
        frequencies = len(self.language.rotary_emb.inv_freq)
        self.table, self.kept = self.positions[0][:, None].repeat(1, frequencies), list[Tensor]()
        return self.embeddings, self.positions

    def choose(self, item: Any, name: str, count: int, features: Tensor) -> Tensor:
        assert len(item.runs) == 1
        reduction = self.strategy.reduce(features, item.grid or Grid(1, 1, len(features)), count, Context())
        slots = item.slots[reduction.kept]
        members = item.slots[reduction.members_of(self.count)] if self.count > 1 else slots[:, None]
        self.embeddings[slots] = reduction.rows(features)
        self.table[slots] = of_members(self.positions, members, [0] * self.table.shape[1])
        return reduction.kept

    def decode(self, embeddings: Tensor, positions: Tensor, *args: Any) -> Any:
        # Each token's position is its own in these prompts.
        with rotating(self.language, self.table[positions[0]]):
            return super().decode(embeddings, positions, *args)


@dataclass(frozen=True)
class Rounds:
    """Requests of a family, what is expected of them, and what the engine answers with cold and with warm caches."""

    asked: dict[str, Request]
    expected: dict[str, Expected]
    cold: dict[str, Answer]
    cached: dict[str, Answer]
    prefix_hits: int
    model: str


@pytest.fixture(
    scope="module", params=[name for name, row in ROWS.items() if not row.drafter and (EVERYTHING or not row.slow)]
)
def family(request: pytest.FixtureRequest) -> str:
    """Name of the row; module-wide, so that each engine starts once."""
    return request.param


def oracle_of(name: str, checkpoint: Path, compact: bool = False) -> Any:
    """The oracle of a row, or one with positions that are wrong for it."""
    row = ROWS[name]
    if row.embed is not None:
        return VllmPromptOracle(checkpoint, row, checkpoint.with_name(for_engine(name)), compact)
    if row.kin is None:
        return FamilyOracle(checkpoint, row, compact)
    return Compact(checkpoint) if compact else qwen.Oracle(checkpoint)


def start(name: str, engines: EnginePool, checkpoint: str) -> Any:
    """The engine of a row on one of its checkpoints."""
    row = ROWS[name]
    stand_in(row)
    return engines.get(checkpoint, max_num_batched_tokens=row.chunk, limit_mm_per_prompt=row.limits, **row.options)


def stand_in(row: Row) -> None:
    """Replace what vLLM's CPU build cannot do for a row; before its first engine."""
    if row.float32_delta_nets:
        float32_delta_nets.install()
    if row.transposed_input:
        contiguous_products.install()
    if row.latent is not None:
        interleaved_rotation.install()
        # Read again each time that vLLM asks for it.
        os.environ["VLLM_MLA_DISABLE"] = str(int(not row.latent))


@pytest.fixture(scope="module")
def played(family: str, engines: EnginePool, checkpoints: dict[str, Path]) -> Rounds:
    """All requests of a family in one batch, then once more."""
    asked, oracle = requests(family, EVERYTHING), oracle_of(family, checkpoints[family])
    expected = {name: oracle.answer(request, STEPS) for name, request in asked.items()}
    llm = start(family, engines, for_engine(family))
    cold, cached = (generate(llm, list(asked.values()), STEPS) for _ in range(2))
    in_our_pads = getattr(oracle, "in_our_pads", lambda answer: answer)
    answers = [
        {name: in_our_pads(answer_of(output)) for name, output in zip(asked, outputs, strict=True)}
        for outputs in (cold, cached)
    ]
    hits = sum(output.num_cached_tokens for output in cached)
    return Rounds(asked, expected, *answers, hits, type(model_of(llm)).__module__)


def pruned(rounds: Rounds) -> list[str]:
    """Names of the requests that lose tokens."""
    return [name for name, answer in rounds.expected.items() if len(answer.prompt) < answer.unpruned]


def test_answers_are_those_of_transformers(family: str, played: Rounds) -> None:
    assert played.model == derived.__name__
    assert len(pruned(played)) >= len(played.asked) // 2
    worst = 0.0
    for answers in (played.cold, played.cached):
        for name, answer in answers.items():
            try:
                worst = max(worst, compare(answer, played.expected[name]))
            except Mismatch as error:
                raise Mismatch(f"{name}: {error}") from None
    assert (played.prefix_hits > 0) == ROWS[family].cached
    print(f"\n{family}: {len(played.asked)} requests twice, worst log-probability error {worst:.1e}")


def test_wrong_positions_are_noticed(family: str, played: Rounds, checkpoints: dict[str, Path]) -> None:
    wrong = oracle_of(family, checkpoints[family], compact=True)
    for name in pruned(played):
        answer = wrong.answer(played.asked[name], STEPS)
        moved = max(abs(a - b) for a, b in zip(answer.logprobs, played.expected[name].logprobs, strict=True))
        assert moved > 100 * TOLERANCE, name


def test_no_budget_is_stock(
    family: str, played: Rounds, engines: EnginePool, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [request for name, request in played.asked.items() if name.endswith(", none")]
    ours = bits(start(family, engines, for_engine(family)), asked)
    with replaced(family, checkpoints, monkeypatch, None) as checkpoint:
        llm = start(family, engines, checkpoint)
        assert type(model_of(llm)).__module__.startswith("vllm.model_executor.models.")
        assert bits(llm, asked) == ours


@pytest.mark.parametrize("family", ["internvl"], indirect=True, scope="module")
def test_without_a_cut_a_place_left_open_is_behind_the_tower(family: str, engines: EnginePool) -> None:
    llm, items = start(family, engines, for_engine(family)), cases(ROWS[family])["v"]
    answers = []
    named = {"strategy": "divprune", "keep": 0.5}
    # A video's default is left open.
    for budget in ({"keep": 0.5}, {**named, "options": {"where": "auto", "after": 2}}, named):
        reset(llm)
        answers.append(bits(llm, [ask(ROWS[family], items, budget)]))
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("family", ["internvl"], indirect=True, scope="module")
def test_merged_tokens_with_several_positions_on_one_axis(
    family: str, engines: EnginePool, checkpoints: dict[str, Path]
) -> None:
    row, llm, answers = ROWS[family], start(family, engines, for_engine(family)), []
    for positions in (8, 1):
        budget = {"strategy": NAME, "keep": 0.3, "options": {"positions": positions}}
        asked = [ask(row, cases(row)["i"], budget), ask(row, cases(row)["ii"], None)]
        oracle = Merging(checkpoints[family], row, positions)
        for _ in range(2):
            with VISUAL.including(ByIndex):
                answer, neighbour = (oracle.in_our_pads(answer_of(output)) for output in generate(llm, asked, STEPS))
            compare(answer, oracle.answer(asked[0], STEPS))
            compare(neighbour, FamilyOracle(checkpoints[family], row).answer(asked[1], STEPS))
        answers.append(answer)
    assert max(abs(a - b) for a, b in zip(answers[0].logprobs, answers[1].logprobs, strict=True)) > 100 * TOLERANCE


def bits(llm: Any, asked: list[Request]) -> list[Any]:
    """Prompts, tokens and log-probabilities to the last bit, with cold and with warm caches."""
    outputs = [output for _ in range(2) for output in generate(llm, asked, STEPS, logprobs=5)]
    return [
        (
            output.prompt_token_ids,
            output.num_cached_tokens,
            [{token: entry.logprob.hex() for token, entry in step.items()} for step in output.outputs[0].logprobs],
        )
        for output in outputs
    ]


@contextmanager
def replaced(
    name: str, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, family: Family | None
) -> Iterator[str]:
    """Another row of the table in place of a family's, or vLLM's own class; gives a checkpoint that vLLM has not seen.

    vLLM remembers the class of a checkpoint by its path.
    """
    from vllm import ModelRegistry
    from vllm.plugins import load_general_plugins

    # In front of the process's first engine it would put the table's rows back.
    load_general_plugins()
    source = checkpoints[for_engine(name)]
    architecture = json.loads((source / "config.json").read_text())["architectures"][0]
    copy = f"{name}_{'stock' if family is None else family.positions}"
    checkpoints[copy] = source.with_name(copy)
    shutil.copytree(source, checkpoints[copy])
    with ExitStack() as after:
        patch = after.enter_context(monkeypatch.context())
        if family is None:
            patch.delitem(FAMILIES, architecture)
            parent = FAMILY_PARENTS[architecture]
            ModelRegistry.register_model(architecture, f"{derived.VLLM_MODELS}.{parent}")
        else:
            patch.setitem(FAMILIES, architecture, family)
            ModelRegistry.register_model(architecture, derived.make_adapter(architecture, family))
        after.callback(ModelRegistry.register_model, architecture, ADAPTERS[architecture])
        yield copy


FAMILY_PARENTS = {architecture: family.parent for architecture, family in FAMILIES.items()}


def test_compact_positions_are_those_of_the_shortened_prompt(
    engines: EnginePool, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, row = "internvl", replace(FAMILIES["InternVLForConditionalGeneration"], positions="compact")
    oracle = FamilyOracle(checkpoints[name], ROWS[name], compact=True)
    asked = {key: request for key, request in requests(name).items() if key.startswith("iv, ")}
    with replaced(name, checkpoints, monkeypatch, row) as checkpoint:
        llm = start(name, engines, checkpoint)
        assert not runner_of(llm).model_config.uses_mrope
        for output, request in zip(generate(llm, list(asked.values()), STEPS), asked.values(), strict=True):
            compare(oracle.in_our_pads(answer_of(output)), oracle.answer(request, STEPS))


@pytest.mark.parametrize("name", [name for name in ROWS if name == "internvl" or (EVERYTHING and ROWS[name].kv)])
def test_kv_budgets_beside_visual_ones(name: str, engines: EnginePool, checkpoints: dict[str, Path]) -> None:
    steps = 40
    row, oracle = ROWS[name], oracle_of(name, checkpoints[name])
    in_our_pads = getattr(oracle, "in_our_pads", lambda answer: answer)
    shown, spec = cases(row), KvSpec("random", keep="0.5", buffer=16)
    chosen = [case for case in ("i", "iv") if case in shown]
    asked = [ask(row, shown[case], BUDGETS[budget]) for case in chosen for budget in ("none", "half")]
    chunk = max(96, row.chunk)
    stand_in(row)
    # As a launched server does, the engine starts where it cannot run each of the strategies.
    options = {**row.options, **EVICTING, "additional_config": {"vllm_prune": {"launched": True}}}
    llm = engines.get(for_engine(name), max_num_batched_tokens=chunk, limit_mm_per_prompt=row.limits, **options)
    with journal() as kept_rows:
        outputs = evict(llm, asked, [spec] * len(asked), steps)
    for request, output in zip(asked, outputs, strict=True):
        prompt, kept = len(output.prompt_token_ids), kept_rows.of(int(output.request_id))
        assert len(kept) > 1
        evictor = Evictor(prompt, spec.count(prompt), spec.buffer, kept)
        compare(in_our_pads(answer_of(output)), oracle.answer(request, steps, evictor))
        assert evictor.done == len(kept)


@pytest.mark.parametrize(
    ("visual", "words"),
    [
        ({"strategy": "recv_attn", "keep": 0.5}, "attention inside the vision tower"),
        ({"strategy": "stts", "keep": 0.5}, "cut inside the vision tower"),
        ({"strategy": "gui_dedup", "keep": 0.5}, "pixels of each visual token"),
        ({"strategy": "uniform", "keep": 0.5, "options": {"where": "tower"}}, "does not cut inside"),
    ],
)
def test_what_needs_the_tower_is_refused(visual: dict[str, Any], words: str, engines: EnginePool) -> None:
    row = ROWS["internvl"]
    llm = start("internvl", engines, "internvl")
    with pytest.raises(BudgetError, match=words):
        generate(llm, [ask(row, cases(row)["i"], visual)], 2)


@pytest.mark.skipif(not EVERYTHING, reason="asked with FAMILIES=full")
def test_a_generic_adapter_reads_the_question_and_keeps_features(
    engines: EnginePool, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLaVA-OneVision, the one generic family that takes strategies which read the question."""
    name, row, texts, runs = "llava_onevision", ROWS["llava_onevision"], list[Tensor](), list[int]()
    facts = {"additional_config": {"vllm_prune": {"feature_cache_bytes": 1 << 20}}}
    assert checkpoints[name]
    llm = engines.get(for_engine(name), max_num_batched_tokens=row.chunk, limit_mm_per_prompt=row.limits, **facts)
    select = CdPruner.select

    def noted(self: Any, tokens: Tensor, grid: Any, count: int, context: Context, per_frame: Any = None) -> Tensor:
        assert context.text is not None
        texts.append(context.text)
        return select(self, tokens, grid, count, context, per_frame)

    monkeypatch.setattr(CdPruner, "select", noted)
    handle = model_of(llm).vision_tower.register_forward_hook(lambda *_: runs.append(1))
    try:
        budgets = [{"strategy": strategy, "keep": 0.4} for strategy in ("cdpruner", "divprune", "uniform", "cdpruner")]
        for shown in (cases(row)["i"], cases(row)["v"]):
            asked = [ask(row, shown, budget) for budget in budgets]
            answers = []
            for request in asked:
                reset(llm)
                answers.append(answer_of(generate(llm, [request], 2)[0]))
            assert answers[0] == answers[3]
    finally:
        handle.remove()
    assert len(runs) == 2
    ids = llm.get_tokenizer().encode("m0what is it?", add_special_tokens=False)
    table = model_of(llm).get_language_model().embed_input_ids
    assert [torch.equal(text, table(torch.tensor(ids))) for text in texts] == [True] * 4
