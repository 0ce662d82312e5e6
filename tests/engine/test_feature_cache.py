"""The real tower behind its feature cache, and strategies with trained layers: one engine for both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.visual.strategies.trained import weights
from vllm_prune.visual.scorers.trained import language_shape
from vllm_prune.visual.strategies._trained import TrainedStrategy
from vllm_prune.visual.strategies.base import Context

from . import media
from .checkpoints import CELL
from .engines import EnginePool, answer_of, generate, model_of, reset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 8
LAYERS = ("qtsplus", "cacovid")
"""Of the strategies with trained layers, those that these families can run."""


@pytest.fixture
def options(family: str, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of an engine with both; the same at each call, so that tests share it."""
    from transformers import AutoConfig

    language = language_shape(AutoConfig.from_pretrained(checkpoints[family]))
    assert language is not None
    folder = tmp_path_factory.getbasetemp() / f"layers-{family}"
    folder.mkdir(exist_ok=True)
    for name in LAYERS:
        if not (folder / f"{name}.safetensors").exists():
            save_file(weights(name, language), folder / f"{name}.safetensors")
    layers = {name: str(folder / f"{name}.safetensors") for name in LAYERS}
    facts = {"weights": layers, "feature_cache_bytes": 8 << 20}
    return {"additional_config": {"vllm_prune": facts}}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many items the tower has run for, call by call."""
    from vllm_prune.visual.models.qwen_vl import PrunedModel

    counts: list[int] = []
    run = PrunedModel._run_tower

    def noted(self: Any, kwargs: Any, modality: str, plans: Any, members: Any) -> Any:
        counts.append(len(members))
        return run(self, kwargs, modality, plans, members)

    monkeypatch.setattr(PrunedModel, "_run_tower", noted)
    return counts


BUDGETS: tuple[media.Visual, ...] = (
    {"strategy": "uniform", "keep": 0.5},
    {"strategy": "divprune", "keep": 0.5},
    {"strategy": "vidcom2", "keep": 0.25},
    {"strategy": "vqtoken_kmeans", "keep": 0.25},
    {"strategy": "cdpruner", "keep": 0.5},
    {"strategy": "gui_dedup", "keep": 0.5},
)


def test_answers_are_the_same_and_the_tower_runs_once(
    family: str, engines: EnginePool, options: dict[str, Any], runs: list[int]
) -> None:
    """Six budgets, two questions and two strategies that look into the tower, with the cache and without."""
    cell = CELL[family]
    picture, other = media.image(7 * cell, 6 * cell, 1), media.image(4 * cell, 5 * cell, 2)
    clip = media.video(6, 3 * cell, 4 * cell, seed=3)
    requests = [media.ask(picture, clip, visual=visual) for visual in BUDGETS]
    requests.append(media.ask(picture, clip, visual=BUDGETS[4], question="where is the blue one?"))
    attentive: list[media.Visual] = [{"strategy": name, "keep": 0.5} for name in ("recv_attn", "flashvlm")]
    requests += [media.ask(picture, other, visual=visual) for visual in attentive]
    requests.append(media.ask(other, visual={"strategy": "divprune", "keep": 0.3, "options": {"where": "tower"}}))

    def answers(llm: Any) -> list[Any]:
        found = []
        for request in requests:
            # vLLM's own caches are cold, so that each request asks for its items.
            reset(llm)
            found.append(answer_of(generate(llm, [request], STEPS, logprobs=1)[0]))
        return found

    plain = answers(engines.get(family))
    assert sum(runs) == 2 * 7 + 2 * 2
    cached = engines.get(family, **options)
    model_of(cached)._features.clear()
    runs.clear()
    assert answers(cached) == plain
    # The clip and the picture; the picture with its attention, and the other one; a cut tower is none of it.
    assert runs == [1, 1, 2]
    runs.clear()
    assert answers(cached) == plain
    assert runs == []
    model_of(cached).load_weights(iter(()))
    answers(cached)
    assert runs == [1, 1, 2]


def test_batch_mates_that_are_cached_change_nothing(
    family: str, engines: EnginePool, options: dict[str, Any], runs: list[int]
) -> None:
    cell = CELL[family]
    pictures = [media.image((3 + i) * cell, 4 * cell, 10 + i) for i in range(3)]
    llm = engines.get(family, **options)
    model_of(llm)._features.clear()
    requests = [media.ask(picture, visual={"strategy": "divprune", "keep": 0.5}) for picture in pictures]
    alone = [answer_of(generate(llm, [request], STEPS, logprobs=1)[0]) for request in requests]
    model_of(llm)._features.clear()
    for request, answer in zip([requests[1], *requests], [alone[1], *alone], strict=True):
        reset(llm)
        assert answer_of(generate(llm, [request], STEPS, logprobs=1)[0]).tokens == answer.tokens
    runs.clear()
    reset(llm)
    together = [media.ask(picture, visual={"strategy": "divprune", "keep": 0.4}) for picture in pictures]
    batched = generate(llm, [*requests, *together], STEPS, logprobs=1)
    assert runs == []
    assert [answer_of(output).tokens for output in batched[:3]] == [answer.tokens for answer in alone]


def test_trained_layers_get_the_question(
    family: str, engines: EnginePool, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, cell, seen = engines.get(family, **options), CELL[family], list[tuple[str, Any]]()
    network = TrainedStrategy.network

    def noted(self: Any, context: Context) -> Any:
        seen.append((self.name, context.text))
        return network(self, context)

    monkeypatch.setattr(TrainedStrategy, "network", noted)
    picture, clip = media.image(5 * cell, 6 * cell, 1), media.video(6, 3 * cell, 4 * cell, seed=3)
    table = model_of(llm).get_language_model().embed_input_ids
    for name, shown, question in (
        ("qtsplus", picture, "what is it?"),
        ("qtsplus", clip, "where is the red one?"),
        ("cacovid", clip, "what is it?"),
    ):
        request = media.ask(shown, visual={"strategy": name, "keep": 0.4}, question=question)
        seen.clear()
        first = answer_of(generate(llm, [request], STEPS, logprobs=1)[0])
        assert {strategy for strategy, _ in seen} == {name}
        ids = llm.get_tokenizer().encode(f"m0{question}", add_special_tokens=False)
        assert torch.equal(seen[0][1], table(torch.tensor(ids)))
        reset(llm)
        assert answer_of(generate(llm, [request], STEPS, logprobs=1)[0]) == first


def test_what_is_encoded_anew_is_what_the_model_reads(
    family: str, engines: EnginePool, options: dict[str, Any]
) -> None:
    llm, cell = engines.get(family, **options), CELL[family]
    picture = media.image(5 * cell, 6 * cell, 1)
    budgets: list[media.Visual] = [
        {"strategy": "qtsplus", "keep": 0.4, "options": {"reencode": reencode}} for reencode in (True, False)
    ]
    requests = [media.ask(picture, visual=visual) for visual in budgets]
    anew, plain = (answer_of(output) for output in generate(llm, requests, STEPS, logprobs=1))
    assert anew.prompt == plain.prompt
    assert anew.logprobs != plain.logprobs


@pytest.mark.parametrize("family", ["qwen2_5_vl"])
def test_weights_that_do_not_fit_are_no_start(
    family: str, engines: EnginePool, options: dict[str, Any], tmp_path: Path
) -> None:
    from vllm.distributed import cleanup_dist_env_and_memory

    config = engines.get(family, **options).llm_engine.vllm_config
    language = language_shape(config.model_config.hf_config)
    assert language is not None
    save_file(
        {name: one[..., :-1].contiguous() for name, one in weights("qtsplus", language).items()},
        tmp_path / "w.safetensors",
    )
    wrong = {"vllm_prune": {"weights": {"qtsplus": str(tmp_path / "w.safetensors")}}}
    with pytest.raises(Exception, match=r"weights\.qtsplus: .* does not fit this model"):
        engines.get(family, additional_config=wrong)
    cleanup_dist_env_and_memory()
