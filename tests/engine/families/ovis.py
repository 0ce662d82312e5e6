"""A tiny checkpoint of Ovis 2.5: softmax over a visual vocabulary, and two marks around each item that are embedded."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen3Config, Qwen3ForCausalLM

from vllm_prune.grid import Grid

from ..checkpoints import _HALF
from .recipes import _plain_text
from .recipes_of_vllm import OVIS_STARTS, read, rewrite
from .twins import Twin, TwinConfig, register

STRIDE = 2
TOWER = {
    "model_type": "siglip2_navit", "hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 3,
    "intermediate_size": 256, "patch_size": 32, "image_size": 512, "num_patches": -1, "num_channels": 3,
    "temporal_patch_size": 1, "hidden_stride": STRIDE, "window_size": 256, "fullatt_block_indexes": None,
    "preserve_original_pe": True, "use_rope": True, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    "attention_dropout": 0.0,
}  # fmt: skip
VOCABULARY = 68


class OvisConfig(TwinConfig):
    """As on the hub, where the class comes with the checkpoint."""

    model_type = "ovis2_5"
    sub_configs: ClassVar = {"text_config": Qwen3Config}

    def __init__(self, vit_config: Any = None, **more: Any) -> None:
        from transformers import PreTrainedConfig

        self.vit_config = PreTrainedConfig(**{**TOWER, **(vit_config or {})})
        self.vit_config.model_type = "siglip2_navit"
        super().__init__(**more)

    def to_dict(self) -> dict[str, Any]:
        """With the tower's part as it is."""
        return {**super().to_dict(), "vit_config": dict(TOWER)}


def cell_order(rows: int, cols: int) -> Tensor:
    """Row and column of each patch, where the patches of a visual token stand together, int64 [2, rows * cols]."""
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij"))
    return grid.unflatten(1, (-1, STRIDE)).unflatten(3, (-1, STRIDE)).permute(0, 1, 3, 2, 4).flatten(1)


class Layer(nn.Module):
    """A block of the tower; each frame attends to itself."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.self_attn = nn.ModuleDict({name: nn.Linear(width, width) for name in ("q_proj", "k_proj", "v_proj")})
        self.self_attn["out_proj"] = nn.Linear(width, width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """[frames, patches, width], and the angles of half a head's values, [patches, head / 2]."""
        normed, heads = self.layer_norm1(x), TOWER["num_attention_heads"]
        q, k, v = (
            self.self_attn[f"{part}_proj"](normed).unflatten(-1, (heads, -1)).transpose(1, 2) for part in "qkv"
        )  # fmt: skip
        attended = F.scaled_dot_product_attention(turned(q, angles), turned(k, angles), v)
        x = x + self.self_attn["out_proj"](attended.transpose(1, 2).flatten(2))
        inner = F.gelu(self.mlp["fc1"](self.layer_norm2(x)), approximate="tanh")
        return x + self.mlp["fc2"](inner)


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate the two halves of each head."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


class Tower(nn.Module):
    """Patches of one item to its patches' features."""

    def __init__(self, width: int, inner: int, layers: int) -> None:
        super().__init__()
        side = TOWER["image_size"] // TOWER["patch_size"]
        self.embeddings = nn.ModuleDict({"position_embedding": nn.Embedding(side**2, width)})
        self.embeddings["patch_embedding"] = nn.Conv2d(3, width, TOWER["patch_size"], TOWER["patch_size"])
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(Layer(width, inner) for _ in range(layers))})
        self.post_layernorm = nn.LayerNorm(width)

    def forward(self, patches: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Patches [frames * rows * columns, values] with those of a visual token together; [patches, width]."""
        frames, rows, cols = size
        side = TOWER["patch_size"]
        x = self.embeddings["patch_embedding"](patches.view(-1, 3, side, side)).view(frames, rows * cols, -1)
        order = cell_order(rows, cols)
        learned = self.embeddings["position_embedding"].weight
        square = learned.unflatten(0, (int(len(learned) ** 0.5), -1)).permute(2, 0, 1)[None]
        resized = F.interpolate(square, size=(rows, cols), mode="bicubic", align_corners=False)[0]
        x = x + resized[:, order[0], order[1]].t()
        quarter = x.shape[-1] // TOWER["num_attention_heads"] // 4
        frequencies = 10000.0 ** (-torch.arange(quarter) / quarter)
        angles = (order[..., None] * frequencies).transpose(0, 1).flatten(1)
        for layer in self.encoder["layers"]:
            x = layer(x, angles)
        return x.flatten(0, 1)


class OvisTwin(Twin):
    """Ovis 2.5 for one item at a time."""

    config_class = OvisConfig
    language = "llm"

    def __init__(self, config: OvisConfig) -> None:
        super().__init__(config)
        self.llm = Qwen3ForCausalLM(config.text_config)
        width = TOWER["hidden_size"]
        tower = Tower(width, TOWER["intermediate_size"], TOWER["num_hidden_layers"])
        words = VOCABULARY - len(OVIS_STARTS)
        head = nn.Sequential(nn.Linear(width * STRIDE**2, words, bias=False), nn.LayerNorm(words))
        self.visual_tokenizer = nn.ModuleDict({"vit": nn.ModuleDict({"vision_model": tower}), "head": head})
        self.vte = nn.Embedding(VOCABULARY, config.text_config.hidden_size)
        self.post_init()

    def features(self, patches: Tensor, size: tuple[int, int, int], marks: Tensor) -> Tensor:
        """Embeddings of an item between those of its two marks."""
        rows = self.visual_tokenizer["vit"]["vision_model"](patches, size)
        words = self.visual_tokenizer["head"](rows.unflatten(0, (-1, STRIDE**2)).flatten(1)).softmax(-1)
        before, behind = self.vte(marks).split(1)
        return torch.cat([before, words @ self.vte.weight[: -len(OVIS_STARTS)], behind])


def twin(tokenizer: Any, folder: Path) -> Any:
    """Ovis 2.5 before Qwen3's language model."""
    from vllm.model_executor.models import ovis2_5

    register(OvisConfig, OvisTwin)
    ids = tokenizer.convert_tokens_to_ids(list(OVIS_STARTS))
    assert all(b == a + 1 for a, b in pairwise(ids))
    # vLLM knows these tokens by their numbers in the real vocabulary.
    ovis2_5.INDICATOR_IDS[:] = ids
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "SiglipImageProcessor", **_HALF})
    )
    text = {"head_dim": 64, **_plain_text(tokenizer), "architectures": ["Qwen3ForCausalLM"]}
    config = OvisConfig(text_config=text, visual_vocab_size=VOCABULARY, hidden_size=256, tie_word_embeddings=False)
    return OvisTwin(config)


def ovis(folder: Path) -> None:
    """The name of the architecture."""
    weights, settings = read(folder)
    rewrite(folder, weights, settings | {"architectures": ["Ovis2_5"]})


def fields_of(modality: str, fields: dict[str, Any]) -> tuple[Tensor, tuple[int, int, int], Tensor]:
    """Patches, frames and rows and columns of patches, and marks of an item."""
    prefix = "" if modality == "image" else "video_"
    frames, rows, cols = fields[f"{prefix}grids"].flatten().tolist()
    return fields[f"{prefix}pixel_values"], (frames, rows, cols), fields[f"{prefix}indicator_tokens"].flatten()


def grid(fields: dict[str, Any]) -> Grid:
    """Visual tokens of an item."""
    _, (frames, rows, cols), _ = fields_of("image" if "grids" in fields else "video", fields)
    return Grid(frames, rows // STRIDE, cols // STRIDE)


def tower(hf: Any, modality: str, fields: dict[str, Any]) -> Tensor:
    """A picture or a video with its marks."""
    rows: Tensor = hf.features(*fields_of(modality, fields))
    return rows
