"""One row per further family: how its checkpoint is made, how media are written in its prompts, and what is asked."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from vllm_prune.grid import Grid

from .. import matrix, media
from ..media import Request, Visual
from . import kimi, opencua, recipes, recipes_of_vllm, towers
from .recipes import Change, Recipe

STEPS = 8
BUDGETS: dict[str, Visual] = {
    "none": None,
    "half": {"strategy": "uniform", "keep": 0.5},
    "tenth": {"strategy": "uniform", "keep": 0.1},
    # Fewer tokens than rows, tiles or frames: some of them keep nothing.
    "few": {"strategy": "uniform", "keep": 0.03},
    "shared": {"strategy": "uniform", "max_tokens": 30},
    "all": {"strategy": "uniform", "keep": 1.0},
    "divprune": {"strategy": "divprune", "keep": 0.3},
}
APART: dict[str, Visual] = {
    "apart": {"strategy": "uniform", "image": {"keep": 0.2}, "video": {"max_tokens": 9}},
    "images": {"strategy": "uniform", "keep": 0.5, "video": None},
}
"""For families whose pictures and videos are one modality of vLLM."""
QWEN_CASES = ("i", "v", "iv", "ivi")
"""Cases of the two families of Qwen-VL that their kin are asked, unless all are wanted."""


def later(module: str, name: str) -> Callable[..., Any]:
    """A function of a module here that is imported when it is called: it needs transformers, and so Triton."""
    return lambda *values, **named: getattr(import_module(f".{module}", __package__), name)(*values, **named)


@dataclass(frozen=True)
class Row:
    """How a family is tested.

    Attributes:
        recipe: see `recipes`.
        kin: the family whose requests and oracle it shares; None for those with media of their own.
        special: tokens of the family beside those of Qwen-VL.
        image, video: a medium in a prompt; None where there are none.
        pads: tokens that take an embedding; two that transformers writes as one are the same.
        chunk: prompt tokens of a step, as few as the family takes.
        change: what vLLM's loader wants changed in the tensors of the checkpoint.
        float32_delta_nets: whether the CPU needs a stand-in for vLLM's kernel.
        transposed_input: whether the tower hands vLLM's matrix product for CPUs an input that it does not take.
        video_metadata: whether transformers' processor takes the metadata of videos.
        one_pad_for_all: whether images and videos have the same pad in transformers.
        videos: how many of them vLLM takes in a prompt.
        rewrite: makes the copy of the checkpoint that the engine loads, where its format is one of vLLM's own.
        embed: features of one item from transformers' tower, see `towers`; where it is there, prompt and pixels come
            from vLLM's stock processor.
        grid: frames, rows and columns of an item from the same fields, where the processor gives them.
        marks: embedded tokens before and behind the visual tokens of an item.
        chunks: whether pictures and pieces of videos are one modality of vLLM, `vision_chunk`.
        latent: whether the model has latent attention; False where vLLM is told to keep all heads instead, as its CPU
            kernel takes neither parts of prompts nor cached ones.
        options: of vLLM, which transformers' answers need.
        kv: whether KV budgets are compared, too.
        drafter: whether the checkpoint has a head that drafts; these rows are for `test_mtp` alone.
        slow: whether it only runs with `FAMILIES=full`: another row runs nearly the same code, or it has not passed.
    """

    recipe: Recipe
    kin: str | None = None
    special: tuple[str, ...] = ()
    image: str = media.IMAGE
    video: str | None = media.VIDEO
    pads: tuple[str, ...] = ()
    chunk: int = 48
    change: Change | None = None
    float32_delta_nets: bool = False
    transposed_input: bool = False
    video_metadata: bool = True
    one_pad_for_all: bool = False
    videos: int = 2
    rewrite: Callable[[Path], None] | None = None
    embed: Callable[[Any, str, dict[str, Any]], Tensor] | None = None
    grid: Callable[[dict[str, Any]], Grid] | None = None
    marks: tuple[int, int] = (0, 0)
    chunks: bool = False
    latent: bool | None = None
    options: dict[str, Any] = field(default_factory=dict)
    kv: bool = False
    drafter: bool = False
    slow: bool = False

    @property
    def copied(self) -> bool:
        """Whether the engine loads a checkpoint of its own."""
        return self.change is not None or self.rewrite is not None

    @property
    def limits(self) -> dict[str, int]:
        """`limit_mm_per_prompt` of the requests."""
        if self.chunks:
            return {"vision_chunk": 4}
        return {"image": 4, **({"video": self.videos} if self.video else {})}

    @property
    def cached(self) -> bool:
        """Whether vLLM caches prefixes of the family."""
        return bool(self.options.get("enable_prefix_caching", True))

    def order(self, prompt: str) -> list[str]:
        """Modalities of the media in a prompt."""
        shown = {self.image: "image", **({self.video: "video"} if self.video else {})}
        return [shown[match] for match in re.findall("|".join(re.escape(text) for text in shown), prompt)]

    def data(self, prompt: str, images: Sequence[Any], videos: Sequence[Any]) -> dict[str, list[Any]]:
        """The media of a prompt as vLLM takes them."""
        if self.chunks:
            return {"vision_chunk": media.chunks(self.order(prompt), images, videos)}
        return {"image": list(images), "video": list(videos)}


NORMALISED = {"mm_device_do_normalize": False}
"""vLLM 0.32 leaves the normalising of pixels to the tower of all that derives from Qwen2.5-VL; EXAONE's does not."""
CAUSAL = {"hf_overrides": {"is_mm_prefix_lm": False}}
"""vLLM's CPU backend has no attention in both directions, so the language model is asked for its causal one."""
GLM_MARKS = tuple(f"<|{word}_of_{modality}|>" for modality in ("image", "video") for word in ("begin", "end"))
GLM4V = Row(
    recipes.glm4v, None, ("<|image|>", "<|video|>", *GLM_MARKS),
    "<|begin_of_image|><|image|><|end_of_image|>", "<|begin_of_video|><|video|><|end_of_video|>",
    ("<|image|>", "<|video|>"), one_pad_for_all=True, videos=1, kv=True,
)  # fmt: skip
KIMI = Row(
    kimi.twin, None, kimi.TOKENS, "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>",
    "<|media_begin|>video<|media_content|><|media_pad|><|media_end|>", ("<|media_pad|>",), rewrite=kimi.k25,
    embed=kimi.tower, grid=kimi.grid, chunks=True, latent=False, options=NORMALISED, slow=True,
)  # fmt: skip
STEP = Row(
    recipes_of_vllm.step3p7_twin, None, recipes_of_vllm.STEP_TOKENS, "<im_patch>", None, ("<im_patch>",), chunk=512,
    rewrite=recipes_of_vllm.step3p7, embed=towers.step3p7, transposed_input=True, slow=True,
)  # fmt: skip
INTERNVL = Row(
    recipes.internvl, None, tuple(recipes.INTERNVL_TOKENS.values()), "<IMG_CONTEXT>", "<video>",
    ("<IMG_CONTEXT>", "<video>"), kv=True,
)  # fmt: skip
OVIS = Row(
    later("ovis", "twin"), None, recipes_of_vllm.OVIS_TOKENS, "<image>", "<video>", ("<|image_pad|>",), videos=1,
    rewrite=later("ovis", "ovis"), embed=later("ovis", "tower"), grid=later("ovis", "grid"), marks=(1, 1),
    kv=True, slow=True,
)  # fmt: skip
ROWS = {
    "qwen3_vl_moe": Row(recipes.qwen3_vl_moe, "qwen3_vl", change=recipes.transposed_experts, kv=True),
    "cosmos3": Row(recipes.qwen3_vl, "qwen3_vl", rewrite=recipes_of_vllm.cosmos3, kv=True, slow=True),
    "qwen3_5": Row(recipes.qwen3_5, "qwen3_vl", chunk=192, float32_delta_nets=True),
    "qwen3_5_moe": Row(recipes.qwen3_5_moe, "qwen3_vl", chunk=192, float32_delta_nets=True, slow=True),
    "interns2_preview": Row(
        recipes.qwen3_5_moe, "qwen3_vl", chunk=192, float32_delta_nets=True,
        rewrite=recipes_of_vllm.called("InternS2PreviewForConditionalGeneration"), slow=True,
    ),
    "qwen3_5_mtp": Row(
        recipes.qwen3_5_full, "qwen3_vl", chunk=192, rewrite=recipes_of_vllm.with_head, drafter=True,
        # vLLM looks for states of delta nets to cache.
        options={"enable_prefix_caching": False},
    ),
    "qwen2_vl": Row(recipes.qwen2_vl, "qwen2_5_vl", kv=True),
    "internvl": INTERNVL,
    "interns1": replace(
        INTERNVL, rewrite=recipes_of_vllm.called("InternS1ForConditionalGeneration"), slow=True
    ),
    "llava_onevision": Row(
        recipes.llava_onevision, None, ("<image>", "<video>"), "<image>", "<video>", ("<image>", "<video>"),
        # vLLM takes no item that is larger than a step.
        chunk=384, change=recipes.nested_tower, video_metadata=False, kv=True, slow=True,
    ),
    "mistral3": Row(
        recipes.mistral3, None, ("[IMG]", "[IMG_BREAK]", "[IMG_END]"), "[IMG]", None, ("[IMG]",), kv=True
    ),
    "pixtral": Row(
        recipes.pixtral, None, ("[IMG]", "[IMG_BREAK]", "[IMG_END]"), "[IMG]", None, ("[IMG]",), kv=True, slow=True
    ),
    "llava_next": Row(
        recipes.llava_next, None, ("<image>",), "<image>", None, ("<image>",),
        change=recipes.nested_tower, kv=True, slow=True,
    ),
    "glm4v": GLM4V,
    "glm4v_moe": replace(GLM4V, recipe=recipes.glm4v_moe, slow=True),
    "idefics3": Row(
        recipes.idefics3, None, ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
        "<image>", None, ("<image>",), kv=True, slow=True,
    ),
    "smolvlm": Row(
        recipes.smolvlm, None,
        ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>"),
        "<image>", None, ("<image>",), kv=True, slow=True,
    ),
    "internvl_chat": Row(
        recipes_of_vllm.internvl_twin, None, ("<image>", "<video>", "<img>", "</img>", "<IMG_CONTEXT>"),
        "<image>", "<video>", ("<IMG_CONTEXT>", "<|video_pad|>"),
        rewrite=recipes_of_vllm.internvl_chat, embed=towers.internvl, kv=True, slow=True,
    ),
    "exaone4_5": Row(
        recipes.exaone4_5, pads=("<|image_pad|>", "<|video_pad|>"),
        options=NORMALISED, kv=True, slow=True,
    ),
    "exaone4_5_mtp": Row(
        recipes.exaone4_5, pads=("<|image_pad|>", "<|video_pad|>"), options=NORMALISED,
        rewrite=recipes_of_vllm.with_head, drafter=True, slow=True,
    ),
    "gemma3": Row(
        recipes.gemma3, None, (*recipes.GEMMA_TOKENS.values(), *recipes.NEWLINES), "<start_of_image>", None,
        ("<image_soft_token>",), change=recipes.nested_tower, options=CAUSAL, slow=True,
    ),
    "gemma4": Row(
        recipes.gemma4, None, (*recipes.GEMMA4_TOKENS.values(), "<|video|>"), "<|image|>", "<|video|>",
        ("<|image|>", "<|video|>"), embed=towers.gemma4, slow=True,
    ),
    "step3p7": STEP,
    "step_vl": replace(STEP, rewrite=later("step3", "step_vl")),
    "step3_vl": replace(
        STEP, recipe=later("step3", "twin"), rewrite=later("step3", "step3"), embed=later("step3", "tower")
    ),
    "minicpmv4_6": Row(
        recipes.minicpmv4_6, None, tuple(recipes.MINICPM_TOKENS.values())[2:], "<|image_pad|>", "<|video_pad|>",
        ("<|image_pad|>", "<|video_pad|>"), chunk=192, float32_delta_nets=True, embed=towers.minicpmv4_6, slow=True,
    ),
    "kimi_k25": KIMI,
    "kimi_k25_mla": replace(
        KIMI, recipe=kimi.twin_as_cached, latent=True, chunk=2048,
        options={**NORMALISED, "enable_prefix_caching": False},
    ),
    "kimi_vl": replace(KIMI, video=None, rewrite=kimi.vl, chunks=False, options={}),
    "opencua": Row(
        opencua.twin, None, opencua.TOKENS, "<|media_begin|><|media_placeholder|><|media_end|>", None,
        ("<|media_placeholder|>",), rewrite=opencua.opencua, embed=opencua.tower, kv=True, slow=True,
    ),
    "ovis2_5": OVIS,
    "ovis2_6": replace(OVIS, rewrite=recipes_of_vllm.called("Ovis2_6ForCausalLM", later("ovis", "ovis"))),
    "llama4": Row(
        recipes.llama4, None, recipes.LLAMA4_TOKENS, "<|image|>", None, ("<|patch|>",), transposed_input=True,
        slow=True,
    ),
}  # fmt: skip


def requests(name: str, everything: bool = False) -> dict[str, Request]:
    """What a family is asked, by the name of the request.

    Args:
        name: of the row.
        everything: the whole matrix, in place of a choice that shows each kind of medium under each budget.
    """
    row = ROWS[name]
    if row.kin is not None:
        asked = matrix.requests(row.kin)
        return {key: one for key, one in asked.items() if everything or key.split(",")[0] in QWEN_CASES}
    shown = cases(row)
    chosen = shown if everything else {key: shown[key] for key in ("i", "ii", "v", "iv") if key in shown}
    return {
        f"{case}, {budget}": ask(row, items, visual)
        for case, items in chosen.items()
        for budget, visual in {**BUDGETS, **(APART if row.chunks else {})}.items()
    }


def build(name: str, folder: Path) -> Path:
    """Write the checkpoint of a row into a new folder, and where vLLM wants one of its own, its copy beside it."""
    row = ROWS[name]
    recipes.build(row.recipe, row.special, folder)
    copy = folder.with_name(for_engine(name))
    if row.change is not None:
        recipes.convert(folder, row.change, copy)
    if row.rewrite is not None:
        shutil.copytree(folder, copy)
        row.rewrite(copy)
    return folder


def for_engine(name: str) -> str:
    """The name of the checkpoint that the engine loads."""
    return f"{name}_vllm" if ROWS[name].copied else name


def cases(row: Row) -> dict[str, tuple[Any, ...]]:
    """Media of each case, i for image and v for video in prompt order."""
    a, b, c = media.image(224, 224, 1), media.image(112, 336, 2), media.image(100, 90, 3)
    images: dict[str, tuple[Any, ...]] = {"i": (a,), "ii": (b, a), "iii": (a, b, c)}
    if row.video is None:
        return images
    # As many frames each: one of the processors stacks the videos of a request.
    v, u = media.video(4, 112, 112, 30, 15, 5), media.video(4, 112, 140, 24, 12, 6)
    shown = {**images, "v": (v,), "iv": (a, v), "vi": (v, b), "ivi": (c, u, a)}
    return shown if row.videos < 2 else {**shown, "vv": (v, u)}


def ask(row: Row, items: tuple[Any, ...], visual: Visual) -> Request:
    """A chat prompt that shows media in their order, each after a word of text."""
    shown = "".join(f"m{i}{row.video if isinstance(item, tuple) else row.image}" for i, item in enumerate(items))
    prompt = f"<|im_start|>user\n{shown}what is it?<|im_end|>\n<|im_start|>assistant\n"
    request = media.with_media(prompt, *items, visual=visual)
    return replace(request, order=tuple(row.order(prompt))) if row.chunks else request
