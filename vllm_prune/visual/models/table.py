"""The model families, one row per architecture of vLLM; imports no model, so each is loaded only when it is served.

A row names a class of ours that was written for the architecture, or one of vLLM's classes and the mixins that are put
in front of it (see `derived`). Refusals, `doctor`, `/v1/pruning/strategies` and the table in the documentation are made
from these rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...grid import MODALITIES, Modality
from ...signals import VisualSignal

Positions = Literal["grid", "original", "compact"]
"""Where kept tokens stand: "grid" at their M-RoPE coordinates, "original" at their place in the unpruned prompt,
"compact" at their place in the pruned one."""

Kind = Literal["Qwen2.5-VL", "Qwen3-VL", "generic"]
"""The mixins of a derived adapter: those of a Qwen-VL family, or the generic ones."""

Extent = Literal["item", "frame"]
"""What takes a range of positions of its own on a grid: the whole item, or each of its frames."""

TOWER: frozenset[VisualSignal] = frozenset({"tower_attention", "pixels", "scorer", "selector", "weights"})
"""Signals of an adapter that knows the vision tower."""
QWEN: frozenset[VisualSignal] = TOWER | {"any_size", "projector", "text"}
"""The same where the processor makes as many visual tokens as a picture's size says, the projector can be run again and
prompts are in ChatML."""
PATCHES: frozenset[VisualSignal] = frozenset({"pixels", "selector", "weights"})
"""Signals of a generic adapter where the processor gives the patches of each visual token."""
OUTPUTS: frozenset[VisualSignal] = frozenset({"selector", "weights"})
"""Signals of a generic adapter that sees nothing but the tower's outputs."""

DERIVED = "vllm_prune.visual.models.derived"
HERE = "vllm_prune.visual.models"


@dataclass(frozen=True)
class Family:
    """How one architecture takes visual budgets.

    Attributes:
        name: what the models are called.
        parent: module and class of vLLM's model, below `vllm.model_executor.models`; of our own class, below this
            package, where `kind` is None.
        kind: the mixins put in front of the parent; None for a class that was written for the architecture.
        positions: see `Positions`.
        modalities: what can be pruned.
        signals: what strategies can have; a cut inside the tower needs "scorer" here, as it knows the tower's blocks.
        per_frame: whether the counts of a video's frames are fixed before the tower runs.
        extent: see `Extent`; only read where positions are those of a grid.
        image_rows: whether text stands after each row of an image.
        sent_as: vLLM's modalities of the items; `vision_chunk` holds pictures and pieces of videos alike.
        patch_grids: for each of vLLM's modalities the field of the processor's output with an item's rows and columns
            of patches, before them perhaps its frames. Where there is none, the runs of embedded tokens are all that is
            known of an item.
        cell_side: where the configuration says how many patches per side a visual token has.
        marks: embedded tokens before and behind the visual tokens of an item, which always stay.
        tested: on what the adapter has been compared with transformers, for people.
        two_way: whether visual tokens attend to each other in both directions (prefix attention), in all models of the
            family or in some; vLLM's CPU build has no such attention, so these families are experimental.
        kv: "yes", "untried", or that they are refused and why: what becomes of KV budgets, for people.
        own_rotation: why one row of the language model's rotary table cannot turn a token by several positions, for
            people; empty where it can.
        mixed_layers: whether the language model always has layers beside those of full attention (windows,
            recurrences); its cache cannot be divided into groups of layers.
    """

    name: str
    parent: str
    kind: Kind | None = "generic"
    positions: Positions = "original"
    modalities: tuple[Modality, ...] = MODALITIES
    signals: frozenset[VisualSignal] = OUTPUTS
    per_frame: bool = False
    extent: Extent = "item"
    image_rows: bool = False
    sent_as: tuple[str, ...] = MODALITIES
    patch_grids: Mapping[str, str] = field(default_factory=lambda: {m: f"{m}_grid_thw" for m in MODALITIES})
    cell_side: str = "vision_config.spatial_merge_size"
    marks: tuple[int, int] = (0, 0)
    tested: str = "CPU, tiny model"
    kv: str = "yes"
    two_way: bool = False
    own_rotation: str = ""
    mixed_layers: bool = False

    @property
    def one_row(self) -> bool:
        """Whether a model with one position per token is shown to vLLM as M-RoPE with three equal rows."""
        return self.kind == "generic" and self.positions == "original"

    @property
    def one_position(self) -> str:
        """Why merged tokens have one position each, for people; empty where they can have several."""
        if self.positions == "compact":
            return "kept tokens stand at their place in the pruned prompt"
        return self.own_rotation

    @property
    def cuts(self) -> bool:
        """Whether tokens can be dropped inside the vision tower."""
        return "scorer" in self.signals

    @property
    def summary(self) -> str:
        """One line for people."""
        cut = "cuts inside the tower" if self.cuts else "choices behind the tower"
        kinds = " and ".join(f"{modality}s" for modality in self.modalities)
        return f"{self.name}: {kinds}, {cut}, {self.positions} positions; tested: {self.tested}; KV budgets: {self.kv}"

    def target(self, architecture: str) -> str:
        """Module and class of the adapter, as vLLM's registry takes them."""
        return f"{HERE}.{self.parent}" if self.kind is None else f"{DERIVED}:{architecture}"


def _qwen3(
    name: str, parent: str, tested: str = "CPU, tiny model", kv: str = "yes", mixed: bool = False, **more: Any
) -> Family:
    return Family(
        name, parent, "Qwen3-VL", "grid", MODALITIES, QWEN, True, "frame", tested=tested, kv=kv, mixed_layers=mixed,
        **more,
    )  # fmt: skip


def _generic(name: str, parent: str, **more: Any) -> Family:
    return Family(name, parent, **{"kv": _UNTRIED, **more})


def _ovis(name: str, tested: str = "CPU, tiny model", kv: str = "untried") -> Family:
    return _generic(
        name, "ovis2_5:Ovis2_5", patch_grids={"image": "grids", "video": "video_grids"},
        cell_side="vit_config.hidden_stride", marks=(1, 1), tested=tested, kv=kv,
    )  # fmt: skip


_DELTA_NETS = "CPU, tiny model with float32 delta nets"
_BY_INHERITANCE = "not run: inherits from a family that was"
_UNTRIED = "untried"
_CAUSAL = "CPU, tiny model with a causal mask"
_PREFIX = "refused: prefix attention"
_LATENT = "refused: MLA"
_OF_MLA = "it has latent attention (MLA)"
_HEADS = "CPU, tiny model, mostly without MLA"

FAMILIES: dict[str, Family] = {
    "Qwen2_5_VLForConditionalGeneration": Family(
        "Qwen2.5-VL", "qwen2_5_vl:PruneQwen25VL", None, "grid", signals=QWEN
    ),
    "Qwen3VLForConditionalGeneration": Family(
        "Qwen3-VL, dense", "qwen3_vl:PruneQwen3VL", None, "grid", signals=QWEN, per_frame=True, extent="frame"
    ),
    "Molmo2ForConditionalGeneration": Family(
        "Molmo2, experimental", "molmo2:PruneMolmo2", None, "compact", ("video",), TOWER, True,
        tested=_CAUSAL, kv=_PREFIX, two_way=True,
    ),
    "Qwen3VLMoeForConditionalGeneration": _qwen3(
        "Qwen3-VL, MoE", "qwen3_vl_moe:Qwen3VLMoeForConditionalGeneration"
    ),
    "Qwen3_5ForConditionalGeneration": _qwen3(
        "Qwen3.5, dense", "qwen3_5:Qwen3_5ForConditionalGeneration", _DELTA_NETS, mixed=True
    ),
    "Qwen3_5MoeForConditionalGeneration": _qwen3(
        "Qwen3.5, MoE", "qwen3_5:Qwen3_5MoeForConditionalGeneration", _DELTA_NETS, mixed=True
    ),
    "Cosmos3ForConditionalGeneration": _qwen3("Cosmos 3", "cosmos3:Cosmos3ForConditionalGeneration"),
    "InternS1ProForConditionalGeneration": _qwen3(
        "Intern-S1-Pro", "interns1_pro:InternS1ProForConditionalGeneration", _BY_INHERITANCE, _UNTRIED,
        own_rotation="its rotary embedding (FoPE) computes angles by itself",
    ),
    "InternS2PreviewForConditionalGeneration": _qwen3(
        "Intern-S2 preview", "interns2_preview:InternS2PreviewForConditionalGeneration", _DELTA_NETS, _UNTRIED, True
    ),
    "InternS2MobiusForConditionalGeneration": _qwen3(
        "Intern-S2 Mobius", "interns2_mobius:InternS2MobiusForConditionalGeneration", _BY_INHERITANCE, _UNTRIED, True
    ),
    "Qwen2VLForConditionalGeneration": _generic(
        "Qwen2-VL", "qwen2_vl:Qwen2VLForConditionalGeneration", positions="grid", signals=PATCHES | {"any_size"},
        kv="yes",
    ),
    "Glm4vForConditionalGeneration": _generic(
        "GLM-4.1V", "glm4_1v:Glm4vForConditionalGeneration", positions="grid", signals=PATCHES, per_frame=True,
        extent="frame", kv="yes",
    ),
    "Glm4vMoeForConditionalGeneration": _generic(
        "GLM-4.5V", "glm4_1v:Glm4vMoeForConditionalGeneration", positions="grid", signals=PATCHES, per_frame=True,
        extent="frame", kv="yes",
    ),
    "Idefics3ForConditionalGeneration": _generic(
        "Idefics 3", "idefics3:Idefics3ForConditionalGeneration", modalities=("image",), kv="yes"
    ),
    "SmolVLMForConditionalGeneration": _generic(
        "SmolVLM", "smolvlm:SmolVLMForConditionalGeneration", modalities=("image",), kv="yes"
    ),
    "LlavaForConditionalGeneration": _generic(
        "LLaVA 1.5, Pixtral (HF)", "llava:LlavaForConditionalGeneration", modalities=("image",), image_rows=True,
        kv="yes",
    ),
    "LlavaNextForConditionalGeneration": _generic(
        "LLaVA-NeXT", "llava_next:LlavaNextForConditionalGeneration", modalities=("image",), kv="yes"
    ),
    "InternVLForConditionalGeneration": _generic(
        "InternVL (HF)", "interns1:InternS1ForConditionalGeneration", per_frame=True, kv="yes"
    ),
    "InternS1ForConditionalGeneration": _generic(
        "Intern-S1", "interns1:InternS1ForConditionalGeneration", per_frame=True, kv="yes"
    ),
    "LlavaOnevisionForConditionalGeneration": _generic(
        "LLaVA-OneVision", "llava_onevision:LlavaOnevisionForConditionalGeneration",
        signals=OUTPUTS | {"text", "unpooled"}, kv="yes",
    ),
    "Mistral3ForConditionalGeneration": _generic(
        "Mistral 3", "mistral3:Mistral3ForConditionalGeneration", modalities=("image",),
        image_rows=True, kv="yes",
    ),
    "InternVLChatModel": _generic("InternVL Chat", "internvl:InternVLChatModel", per_frame=True, kv="yes"),
    "Exaone4_5_ForConditionalGeneration": _generic(
        "EXAONE 4.5", "exaone4_5:Exaone4_5_ForConditionalGeneration", signals=PATCHES, kv="yes"
    ),
    "OpenCUAForConditionalGeneration": _generic(
        "OpenCUA", "opencua:OpenCUAForConditionalGeneration", modalities=("image",), signals=PATCHES,
        tested="CPU, tiny model with the processor of vLLM 0.33; that of 0.32 takes no picture with transformers 5",
        kv="yes",
    ),
    "Ovis2_5": _ovis("Ovis 2.5", kv="yes"),
    "Ovis2_6ForCausalLM": _ovis("Ovis 2.6, dense", kv="yes"),
    "Ovis2_6_MoeForCausalLM": _ovis("Ovis 2.6, MoE", _BY_INHERITANCE),
    "Gemma3ForConditionalGeneration": _generic(
        "Gemma 3, experimental", "gemma3_mm:Gemma3ForConditionalGeneration", modalities=("image",), tested=_CAUSAL,
        kv=_PREFIX, two_way=True, mixed_layers=True,
    ),
    "Gemma4ForConditionalGeneration": _generic(
        "Gemma 4, experimental", "gemma4_mm:Gemma4ForConditionalGeneration", per_frame=True, tested=_CAUSAL,
        two_way=True, mixed_layers=True,
    ),
    "MiniCPMV4_6ForConditionalGeneration": _generic(
        "MiniCPM-V 4.6", "minicpmv4_6:MiniCPMV4_6ForConditionalGeneration", per_frame=True, tested=_DELTA_NETS,
        mixed_layers=True,
    ),
    "Step3p7ForConditionalGeneration": _generic(
        "Step 3.7", "step3p7:Step3p7ForConditionalGeneration", modalities=("image",),
        tested="CPU, tiny model with one expert", mixed_layers=True,
    ),
    "KimiK25ForConditionalGeneration": _generic(
        "Kimi-K2.5", "kimi_k25:KimiK25ForConditionalGeneration", sent_as=("vision_chunk",),
        patch_grids={"vision_chunk": "grid_thws"}, cell_side="vision_config.merge_kernel_size", kv=_LATENT,
        tested=_HEADS, own_rotation=_OF_MLA,
    ),
    "KimiVLForConditionalGeneration": _generic(
        "Kimi-VL", "kimi_vl:KimiVLForConditionalGeneration", modalities=("image",),
        patch_grids={"image": "image_grid_hws"}, cell_side="vision_config.merge_kernel_size", kv=_LATENT,
        tested=_HEADS, own_rotation=_OF_MLA,
    ),
    "StepVLForConditionalGeneration": _generic(
        "Step-VL", "step_vl:StepVLForConditionalGeneration", modalities=("image",),
        tested="CPU, tiny model with one expert",
    ),
    "Step3VLForConditionalGeneration": _generic(
        "Step3", "step3_vl:Step3VLForConditionalGeneration", modalities=("image",)
    ),
    "Llama4ForConditionalGeneration": _generic(
        "Llama 4", "mllama4:Llama4ForConditionalGeneration", modalities=("image",), kv="refused: chunks of attention",
        own_rotation="its queries are scaled by their position",
    ),
}  # fmt: skip
"""The families by vLLM's architecture name."""

DRAFTERS: dict[str, str] = {
    "Qwen3_5MTP": "qwen3_5_mtp:Qwen3_5MTP",
    "Qwen3_5MoeMTP": "qwen3_5_mtp:Qwen3_5MoeMTP",
    "InternS2MobiusMTP": "interns2_mobius:InternS2MobiusMTP",
    "Exaone4_5_MTP": "exaone4_5_mtp:Exaone4_5_MTP",
}
"""Draft models that read the target's embeddings of media, with vLLM's class; ours take off the position columns."""

ADAPTERS: dict[str, str] = {
    **{architecture: family.target(architecture) for architecture, family in FAMILIES.items()},
    **{architecture: f"{DERIVED}:{architecture}" for architecture in DRAFTERS},
}
"""What is registered with vLLM, by architecture."""


def family_of(architectures: Iterable[str]) -> Family | None:
    """The family of a model from the architecture names in its configuration; None where none is adapted."""
    return next((FAMILIES[name] for name in architectures if name in FAMILIES), None)
