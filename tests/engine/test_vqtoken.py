"""VQToken's layer on LLaVA-OneVision, the one family that gives frames before they are pooled, beside transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.visual.strategies.trained import weights
from tests.visual.strategies.vqtoken_long_form import codebook, decoded
from vllm_prune.budget.errors import BudgetError
from vllm_prune.visual.scorers.trained import language_shape
from vllm_prune.visual.strategies.base import Context
from vllm_prune.visual.strategies.vqtoken import VqToken

from . import media
from .engines import EnginePool, answer_of, generate, model_of, reset
from .families.oracle import FamilyOracle
from .families.rows import ROWS, ask, for_engine
from .media import Request
from .oracle import Expected, Mismatch, compare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NAME, STEPS = "llava_onevision", 8
ROW = ROWS[NAME]
PICTURE = media.image(112, 112, 1)
CLIPS = {n: media.video(n, 112, 112, 30, 15, n) for n in (4, 6)}
Seen = list[tuple[int, Tensor]]


@pytest.fixture(scope="module")
def layers(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    from transformers import AutoConfig

    language = language_shape(AutoConfig.from_pretrained(checkpoints[NAME]))
    assert language is not None
    assert language.frame_patches == 64
    return weights("vqtoken", language)


@pytest.fixture(scope="module")
def llm(engines: EnginePool, layers: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("layers") / "model.safetensors"
    save_file({f"model.cross_attention.{name}": tensor for name, tensor in layers.items()}, file)
    facts = {"vllm_prune": {"weights": {"vqtoken": str(file)}, "feature_cache_bytes": 1 << 20}}
    return engines.get(
        for_engine(NAME), max_num_batched_tokens=ROW.chunk, limit_mm_per_prompt=ROW.limits, additional_config=facts
    )


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Seed and frames of every item that the strategy has reduced."""
    items, reduce = Seen(), VqToken.reduce

    def noted(self: Any, tokens: Tensor, grid: Any, count: int, context: Context, per_frame: Any = None) -> Any:
        items.append((context.seed, context.unpooled.rows))
        return reduce(self, tokens, grid, count, context, per_frame)

    monkeypatch.setattr(VqToken, "reduce", noted)
    return items


class Transformers:
    """What a request with one video must answer, with the layer's rows from the float64 reference."""

    def __init__(self, checkpoint: Path, layers: dict[str, Tensor]) -> None:
        self.oracle, self.layers = FamilyOracle(checkpoint, ROW), layers

    @torch.no_grad()
    def laid_out(self, request: Request) -> tuple[Tensor, Tensor, Tensor, Any, Tensor]:
        """Token ids, embeddings, positions, the video's item, and its frames before pooling."""
        inputs = self.oracle.expand(request.prompt, request.images, request.videos)
        model, frames = self.oracle.hf.model, list[Tensor]()
        pool = model.apply_pooling

        def noted(rows: Tensor) -> Tensor:
            frames.append(rows)
            return pool(rows)

        with patch.object(model, "apply_pooling", noted):
            embeddings, positions = self.oracle.laid_out(inputs)
        ids = inputs.input_ids[0]
        *_, video = self.oracle.items(request, ids, inputs)
        return ids, embeddings, positions, video, frames[0]

    @torch.no_grad()
    def answer(self, request: Request, keep: float, seed: int, *, negated: bool = False) -> Expected:
        ids, embeddings, positions, video, frames = self.laid_out(request)
        tokens, shown = len(video.slots), len(frames)
        count = max(1, int(tokens * keep))
        codes, owner = codebook(frames.flatten(0, 1), count - 1, seed, 50)
        doubles = {name: tensor.double() for name, tensor in self.layers.items()}
        made = decoded(doubles, owner.view(shown, -1).double(), codes) * (-1 if negated else 1)
        spread = [(2 * i + 1) * shown // (2 * (count - 1)) for i in range(count - 1)]
        rows = made if count > shown else made[spread]
        # The rows are the last of the video, in front of the newline that ends it.
        embeddings = embeddings.clone()
        embeddings[video.slots[-count:-1]] = rows.float()
        keeping = torch.ones(len(ids), dtype=torch.bool)
        keeping[video.slots[:-count]] = False
        places = positions[:, keeping]
        found = self.oracle.decode(embeddings[keeping], places, int(positions.max()) + 1, STEPS)
        return Expected(tuple(self.oracle.one_pad(ids[keeping].tolist())), *found, len(ids), (count,))


@pytest.fixture(scope="module")
def transformers(checkpoints: dict[str, Path], layers: dict[str, Tensor]) -> Transformers:
    return Transformers(checkpoints[NAME], layers)


def requests() -> dict[str, tuple[Request, float]]:
    """Videos of two lengths, more rows than frames and fewer, alone and behind a picture that keeps everything."""
    asked = {}
    for name, shown in {"4": (CLIPS[4],), "6": (CLIPS[6],), "picture and 4": (PICTURE, CLIPS[4])}.items():
        for keep in (0.5, 0.2, 0.05):
            budget = {"strategy": "vqtoken", "keep": keep, "image": None}
            asked[f"{name}, {keep}"] = ask(ROW, shown, budget), keep
    return asked


def test_frames_are_those_of_transformers(llm: Any, seen: Seen, transformers: Transformers) -> None:
    asked = [request for request, _ in requests().values()]
    generate(llm, asked, 1)
    # Two clips under three budgets; behind the picture they are the same items.
    assert len(seen) == 6
    assert "apply_pooling" not in vars(model_of(llm))
    by_length = {len(frames): frames for _, frames in seen}
    assert set(by_length) == {4, 6}
    for request in asked[0], asked[3]:
        *_, video, frames = transformers.laid_out(request)
        assert len(video.slots) == len(frames) * 16 + 1
        torch.testing.assert_close(by_length[len(frames)], frames, atol=1e-4, rtol=1e-4)


def test_the_model_reads_the_layer_s_rows(llm: Any, seen: Seen, transformers: Transformers) -> None:
    asked = requests()
    reset(llm)
    together = generate(llm, [request for request, _ in asked.values()], STEPS)
    seeds = {len(frames): seed for seed, frames in seen}
    assert len({seed for seed, _ in seen}) == 2
    for (name, (request, keep)), output in zip(asked.items(), together, strict=True):
        seed = seeds[4 if "4" in name.partition(",")[0] else 6]
        expected = transformers.answer(request, keep, seed)
        # Alone, and once more from vLLM's caches.
        reset(llm)
        alone = [generate(llm, [request], STEPS)[0] for _ in range(2)]
        for one in (output, *alone):
            try:
                compare(transformers.oracle.in_our_pads(answer_of(one)), expected)
            except Mismatch as error:
                raise Mismatch(f"{name}: {error}") from None
        # Control: other rows are told apart. Negated ones, since two codes can form the same groups from any seed.
        wrong = transformers.answer(request, keep, seed, negated=True)
        with pytest.raises(Mismatch):
            compare(transformers.oracle.in_our_pads(answer_of(output)), wrong)


def test_videos_of_several_lengths_without_a_budget(llm: Any) -> None:
    """One call of the encoder has both, at which stock vLLM stops."""
    asked, encode, batches = [ask(ROW, (clip,), None) for clip in CLIPS.values()], model_of(llm).embed_multimodal, []

    def noted(**kwargs: Any) -> Any:
        batches.append(len(kwargs["pixel_values_videos"]))
        return encode(**kwargs)

    reset(llm)
    with patch.object(model_of(llm), "embed_multimodal", noted):
        together = [answer_of(output) for output in generate(llm, asked, STEPS)]
    assert batches == [2]
    for request, answer in zip(asked, together, strict=True):
        reset(llm)
        compare(answer_of(generate(llm, [request], STEPS)[0]), Expected(*vars(answer).values(), 0, ()))


def test_frames_are_captured_anew_and_features_are_kept(llm: Any) -> None:
    model, runs = model_of(llm), list[int]()
    handle = model.vision_tower.register_forward_hook(lambda *_: runs.append(1))
    model._features.clear()
    try:
        for strategy, keep, times in (("vqtoken", 0.5, 1), ("vqtoken", 0.2, 2), ("uniform", 0.3, 2)):
            reset(llm)
            generate(llm, [ask(ROW, (CLIPS[4],), {"strategy": strategy, "keep": keep})], 1)
            assert len(runs) == times
    finally:
        handle.remove()


def test_all_of_a_video_is_the_video(llm: Any) -> None:
    whole, plain = (ask(ROW, (CLIPS[4],), budget) for budget in ({"strategy": "vqtoken", "keep": 1.0}, None))
    first, second = generate(llm, [whole, plain], STEPS)
    assert answer_of(first) == answer_of(second)


def test_pictures_are_refused(llm: Any) -> None:
    for budget in ({"strategy": "vqtoken", "keep": 0.5}, {"image": {"strategy": "vqtoken"}, "keep": 0.5}):
        with pytest.raises(BudgetError, match="vqtoken"):
            generate(llm, [ask(ROW, (PICTURE,), budget)], 1)
