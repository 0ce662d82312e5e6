"""Molmo2: budgets for videos against plain torch, with a causal language model; and vLLM's bidirectional ranges.

The CPU backend has no prefix attention, so vLLM is told here that the model needs none. All else is as it is served.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vllm_prune.budget.errors import BudgetError

from ..vllm_names import prefix_ranges
from .engines import EnginePool, answer_of, features_of, generate, reset
from .media import Request, image, video
from .molmo2.checkpoint import build
from .molmo2.oracle import Oracle
from .molmo2.remote import HEIGHT, WIDTH
from .oracle import TOLERANCE, compare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 4
PROMPTS = {"short": ("<|video|> which?", 3, 1), "long": ("see <|video|>", 6, 2)}
BUDGETS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "uniform": {"strategy": "uniform", "keep": 0.5},
    "evs": {"strategy": "evs", "keep": 0.3},
    "vidcom2": {"strategy": "vidcom2", "keep": 0.25},
    "mc_evs": {"strategy": "mc_evs", "max_tokens": 17},
    "a cell": {"strategy": "divprune", "max_tokens": 1},
    "gui_dedup": {"strategy": "gui_dedup", "keep": 0.5},
    "recv_attn": {"strategy": "recv_attn", "keep": 0.5},
    "tower": {"strategy": "divprune", "keep": 0.4, "options": {"where": "tower", "after": 1}},
    "tower, late": {"strategy": "divprune", "keep": 0.4, "options": {"where": "tower", "after": 3}},
    "tower, few": {"strategy": "mc_evs", "max_tokens": 4, "options": {"where": "tower", "after": 1}},
    "stts": {"strategy": "stts", "keep": 0.5},
    "stts, few": {"strategy": "stts", "keep": 0.2},
}
NAMES = [f"{prompt}, {budget}" for prompt in PROMPTS for budget in BUDGETS]


def request_of(name: str) -> Request:
    prompt, _, budget = name.partition(", ")
    text, frames, seed = PROMPTS[prompt]
    return Request(text, videos=(video(frames, HEIGHT, WIDTH, seed=seed),), visual=BUDGETS[budget])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("checkpoints") / "molmo2")


@pytest.fixture(scope="module")
def llm(folder: Path) -> Any:
    pool = EnginePool({"molmo2": folder})
    # Prompts are cut into chunks, between and inside frames.
    yield pool.get(
        "molmo2",
        trust_remote_code=True,
        hf_overrides={"is_mm_prefix_lm": False},
        limit_mm_per_prompt={"image": 1, "video": 1},
        max_num_batched_tokens=128,
    )
    pool.close()


@pytest.fixture(scope="module")
def outputs(llm: Any) -> dict[str, list[Any]]:
    """Two rounds of all requests, batched as the engine likes; caches are warm in the second."""
    rounds = [generate(llm, [request_of(name) for name in NAMES], STEPS) for _ in range(2)]
    return {name: [found[i] for found in rounds] for i, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle(folder)


@pytest.mark.parametrize("name", NAMES)
def test_answers(outputs: dict[str, list[Any]], oracle: Oracle, name: str) -> None:
    expected, counts = oracle.answer(request_of(name), STEPS)
    for output in outputs[name]:
        compare(answer_of(output), expected)
    frames, budget = PROMPTS[name.partition(", ")[0]][1], request_of(name).visual
    whole = frames * 12
    assert sum(counts) == (whole if budget is None else budget.get("max_tokens") or int(budget["keep"] * whole))


def test_worst_error(outputs: dict[str, list[Any]], oracle: Oracle) -> None:
    errors = [compare(answer_of(outputs[name][0]), oracle.answer(request_of(name), STEPS)[0]) for name in NAMES]
    print(f"molmo2: {2 * len(NAMES)} answers, largest log-probability error {max(errors):.1e}")
    assert max(errors) < TOLERANCE


@pytest.mark.parametrize("name", ["long, none", "long, mc_evs", "long, stts, few", "short, a cell"])
def test_bidirectional_ranges(llm: Any, oracle: Oracle, name: str) -> None:
    """Each frame's marks and kept cells see each other both ways; times and text stay outside."""
    from vllm import SamplingParams

    request = request_of(name)
    expected, counts = oracle.answer(request, 1)
    reset(llm)
    llm.llm_engine.add_request("ranges", request.for_vllm(), SamplingParams(max_tokens=2))
    llm.llm_engine.step()
    [features] = features_of(llm)
    ranges = prefix_ranges(features)
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()

    starts, ends = (
        [i for i, token in enumerate(expected.prompt) if token == oracle.token(mark)]
        for mark in ("<frame_start>", "<frame_end>")
    )
    assert len(starts) == len(counts)
    assert ranges == list(zip(starts, ends, strict=True))
    assert [end - start - 1 for start, end in ranges] == counts


def test_one_call_of_the_tower_for_many_budgets(llm: Any, oracle: Oracle) -> None:
    """Videos of several requests, some cut at one place by different counts, and one dense."""
    names = ["short, stts", "long, stts", "long, stts, few", "long, none", "short, tower"]
    reset(llm)
    for name, output in zip(names, generate(llm, [request_of(name) for name in names], STEPS), strict=True):
        compare(answer_of(output), oracle.answer(request_of(name), STEPS)[0])


def test_images_are_refused(llm: Any) -> None:
    picture = Request("<|image|> what?", images=(image(HEIGHT, WIDTH),), visual={"keep": 0.5})
    with pytest.raises(BudgetError, match=r"pruning\.visual\.image to null"):
        generate(llm, [picture], 1)
    assert generate(llm, [picture.within(None)], 1)[0].outputs[0].token_ids


def test_a_video_beside_an_image(llm: Any) -> None:
    both = Request("<|image|> and <|video|>", (image(HEIGHT, WIDTH),), (video(3, HEIGHT, WIDTH),))
    pruned = both.within({"image": None, "video": {"strategy": "uniform", "keep": 0.5}})
    lengths = [len(one.prompt_token_ids) for one in generate(llm, [both, pruned], 1)]
    assert lengths[0] - lengths[1] == 18


def test_frames_that_cells_do_not_tile(llm: Any) -> None:
    processor = llm.llm_engine.renderer.mm_processor
    frame = processor._tiles(1).flip(1)
    data = {"video_num_crops": torch.tensor([1]), "video_num_pooled_patches": torch.tensor([len(frame)]),
            "video_token_pooling": frame, "pixel_values_videos": torch.zeros(1, frame.numel(), 588)}  # fmt: skip
    with pytest.raises(ValueError, match="not 3 x 3"):
        processor.patches_of("video", data, 0)
    assert processor.patches_of("video", {**data, "video_token_pooling": frame.flip(1)}, 0).shape == (108, 588)
