"""Tiny checkpoints of Step3, of which transformers has neither part, and of Step-VL, Step 3.7 under other names."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vllm.transformers_utils.configs.step3_vl import Step3TextConfig, Step3VLConfig

from .ovis import turned
from .recipes import _plain_text
from .recipes_of_vllm import read, renamed, rewrite, step3p7
from .twins import Twin, TwinConfig, register

WIDTH, HEADS, HEAD, SHARED = 256, 4, 64, 96
TOWER = {
    "hidden_size": 64, "intermediate_size": 128, "output_hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 728, "patch_size": 14, "hidden_act": "quick_gelu",
}  # fmt: skip


def step_vl(folder: Path) -> None:
    """The names of the hub's Step-VL."""
    step3p7(folder)
    weights, settings = read(folder)
    names = {r"^model\.(vision_model\.|vit_large_projector)": r"\1", r"^model\.language_model\.": "model."}
    rewrite(folder, renamed(weights, names), settings | {"architectures": ["StepVLForConditionalGeneration"]})


class Norm(nn.Module):
    """Root mean square norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width]."""
        return self.weight * F.rms_norm(x, x.shape[-1:], eps=1e-5)


class Gated(nn.Module):
    """Three projections with SiLU."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(WIDTH, inner, bias=False), nn.Linear(WIDTH, inner, bias=False)
        self.down_proj = nn.Linear(inner, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., WIDTH]."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Weight(nn.Module):
    """The weights of all experts."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*shape))


class Experts(nn.Module):
    """Two of four experts per token, weighed by their share of all four."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 4, bias=False)
        self.gate_proj, self.up_proj = Weight(4, inner, WIDTH), Weight(4, inner, WIDTH)
        self.down_proj = Weight(4, WIDTH, inner)

    def forward(self, x: Tensor) -> Tensor:
        """[..., WIDTH]; every expert is asked about every token."""
        shares = self.gate(x).softmax(-1)
        best = shares.topk(2, -1)
        shares = torch.zeros_like(shares).scatter(-1, best.indices, best.values)
        gates, ups = (torch.einsum("bnd,eid->bnei", x, part.weight) for part in (self.gate_proj, self.up_proj))
        out = torch.einsum("bnei,edi->bned", F.silu(gates) * ups, self.down_proj.weight)
        return (out * shares[..., None]).sum(-2)


class Attention(nn.Module):
    """Multi-matrix factorised attention: queries by way of a narrow one, and one head of keys and values."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.q_proj, self.k_proj = nn.Linear(WIDTH, SHARED, bias=False), nn.Linear(WIDTH, HEAD, bias=False)
        self.v_proj, self.o_proj = nn.Linear(WIDTH, HEAD, bias=False), nn.Linear(HEADS * HEAD, WIDTH, bias=False)
        self.inter_norm, self.wq = Norm(SHARED), nn.Linear(SHARED, HEADS * HEAD, bias=False)

    def forward(self, x: Tensor, angles: Tensor, cache: Any) -> Tensor:
        """[1, n, WIDTH]; the angles of its tokens are [n, HEAD / 2], those before are in the cache."""
        q = self.wq(self.inter_norm(self.q_proj(x))).unflatten(-1, (HEADS, HEAD)).transpose(1, 2)
        k, v = self.k_proj(x)[:, None], self.v_proj(x)[:, None]
        k, v = cache.update(turned(k, angles), v, self.number)
        n, total = x.shape[1], k.shape[2]
        mask = torch.ones(n, total, dtype=torch.bool).tril(total - n)
        out = F.scaled_dot_product_attention(turned(q, angles), k, v, attn_mask=mask, enable_gqa=True)
        projected: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return projected


class Layer(nn.Module):
    """A layer of the language model."""

    def __init__(self, number: int, sparse: bool) -> None:
        super().__init__()
        self.self_attn = Attention(number)
        self.input_layernorm, self.post_attention_layernorm = Norm(WIDTH), Norm(WIDTH)
        if sparse:
            self.moe, self.share_expert = Experts(64), Gated(64)
        else:
            self.mlp = Gated(512)

    def forward(self, x: Tensor, angles: Tensor, cache: Any) -> Tensor:
        """See `Attention`."""
        x = x + self.self_attn(self.input_layernorm(x), angles, cache)
        normed = self.post_attention_layernorm(x)
        return x + (self.mlp(normed) if hasattr(self, "mlp") else self.moe(normed) + self.share_expert(normed))


class Language(nn.Module):
    """The language model without its head, called as those of transformers are."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embed_tokens, self.norm = nn.Embedding(vocabulary, WIDTH), Norm(WIDTH)
        self.layers = nn.ModuleList(Layer(i, i == 2) for i in range(3))

    def forward(self, inputs_embeds: Tensor, position_ids: Tensor, past_key_values: Any) -> Any:
        """[1, n, WIDTH] and [1, n]."""
        frequencies = 10000.0 ** (-torch.arange(0, HEAD, 2) / HEAD)
        angles, x = position_ids[0][:, None] * frequencies, inputs_embeds
        for layer in self.layers:
            x = layer(x, angles, past_key_values)
        return SimpleNamespace(last_hidden_state=self.norm(x))


class Block(nn.Module):
    """A block of the tower, whose norms stand behind."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({"qkv_proj": nn.Linear(width, 3 * width), "out_proj": nn.Linear(width, width)})
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x: Tensor) -> Tensor:
        """[pictures, patches, width]."""
        heads = TOWER["num_attention_heads"]
        parts = self.self_attn["qkv_proj"](x).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.layer_norm1(self.self_attn["out_proj"](out))
        inner = self.mlp["fc1"](x)
        return x + self.layer_norm2(self.mlp["fc2"](inner * (1.702 * inner).sigmoid()))


class Tower(nn.Module):
    """Pictures to the features of their patches."""

    def __init__(self, width: int, inner: int, side: int, patch: int) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict({"patch_embedding": nn.Conv2d(3, width, patch, patch)})
        self.embeddings["position_embedding"] = nn.Embedding(side**2 + 1, width)
        self.embeddings.class_embedding = nn.Parameter(torch.zeros(1, width))
        self.transformer = nn.ModuleDict({"layers": nn.ModuleList(Block(width, inner) for _ in range(2))})

    def forward(self, pixels: Tensor) -> Tensor:
        """[pictures, 3, height, height] to [pictures, patches, width]."""
        x = self.embeddings["patch_embedding"](pixels)
        learned = self.embeddings["position_embedding"].weight
        first, grid = learned[0] + self.embeddings.class_embedding[0], learned[1:]
        side = int(len(grid) ** 0.5)
        if x.shape[-1] != side:
            square = grid.unflatten(0, (side, side)).permute(2, 0, 1)[None]
            square = F.interpolate(square, size=x.shape[-2:], mode="bicubic", antialias=True, align_corners=False)
            grid = square[0].flatten(1).t()
        x = torch.cat([first.expand(len(x), 4, -1), x.flatten(2).transpose(1, 2) + grid], 1)
        for block in self.transformer["layers"]:
            x = block(x)
        return x[:, 4:]


class Config(TwinConfig):
    """Of the twin; vLLM has a class of its own."""

    model_type = "step3_twin"
    sub_configs: ClassVar = {"text_config": Step3TextConfig}

    def __init__(self, text_config: Any = None, **more: Any) -> None:
        super().__init__(text_config=text_config, **more)


class Step3Twin(Twin):
    """Step3 for one picture at a time."""

    config_class = Config
    language = "causal_model"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        vocabulary, width = config.text_config.vocab_size, TOWER["output_hidden_size"]
        head = nn.Linear(WIDTH, vocabulary, bias=False)
        self.causal_model = nn.ModuleDict({"model": Language(vocabulary), "lm_head": head})
        side = TOWER["image_size"] // TOWER["patch_size"]
        self.vision_model = Tower(TOWER["hidden_size"], TOWER["intermediate_size"], side, TOWER["patch_size"])
        self.vit_downsampler = nn.Conv2d(TOWER["hidden_size"], width, 2, 2)
        self.vit_downsampler2 = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.vit_large_projector = nn.Linear(2 * width, WIDTH, bias=False)
        self.post_init()

    def features(self, pixels: Tensor) -> Tensor:
        """Visual tokens of pictures, one picture after the other."""
        x = self.vision_model(pixels)
        side = int(x.shape[1] ** 0.5)
        x = self.vit_downsampler2(self.vit_downsampler(x.transpose(1, 2).unflatten(2, (side, side))))
        rows: Tensor = self.vit_large_projector(x.flatten(2).transpose(1, 2).flatten(0, 1))
        return rows


def twin(tokenizer: Any, folder: Path) -> Any:
    """Step3: pictures of 169 visual tokens, with windows of 81 before them."""
    register(Config, Step3Twin)
    text = _plain_text(tokenizer, head_dim=HEAD, share_q_dim=SHARED, rms_norm_eps=1e-5, max_position_embedding=4096)
    text |= {"moe_num_experts": 4, "moe_top_k": 2, "moe_layers_enum": "2", "moe_intermediate_size": 64}
    text |= {"share_expert_dim": 64, "num_key_value_heads": 1, "architectures": ["Step3TextForCausalLM"]}
    return Step3Twin(Config(text_config=text, image_token_id=tokenizer.convert_tokens_to_ids("<im_patch>")))


def step3(folder: Path) -> None:
    """The names of the hub."""
    weights, settings = read(folder)
    weights = renamed(weights, {r"^causal_model\.": ""})
    rewrite(folder, weights, {
        "architectures": ["Step3VLForConditionalGeneration"], "model_type": Step3VLConfig.model_type,
        "text_config": settings["text_config"], "vision_config": TOWER, "understand_projector_stride": 2,
        "projector_bias": False, "image_token_id": settings["image_token_id"], "tie_word_embeddings": False,
    })  # fmt: skip


def tower(hf: Any, modality: str, fields: dict[str, Any]) -> Tensor:
    """The windows of a picture and then the whole of it."""
    whole = hf.features(fields["pixel_values"][None])
    return torch.cat([hf.features(fields["patch_pixel_values"]), whole]) if int(fields["num_patches"]) else whole
