"""Random weights in the layouts that authors publish, written down by their names and sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid
from vllm_prune.visual.strategies._frames import Frames
from vllm_prune.visual.strategies._trained import LanguageShape, Network, TrainedStrategy

PATCHES = 49
LANGUAGE = LanguageShape(32, 4, 2, 1000.0, 1e-5, PATCHES)


def attention(name: str, language: LanguageShape) -> dict[str, tuple[int, ...]]:
    width, keys = language.width, language.kv_heads * language.width // language.heads
    return {
        f"{name}q_proj.weight": (width, width),
        f"{name}q_proj.bias": (width,),
        f"{name}k_proj.weight": (keys, width),
        f"{name}k_proj.bias": (keys,),
        f"{name}v_proj.weight": (keys, width),
        f"{name}v_proj.bias": (keys,),
        f"{name}o_proj.weight": (width, width),
    }


def qtsplus(language: LanguageShape, layers: int = 1) -> dict[str, tuple[int, ...]]:
    width, hidden = language.width, 4 * language.width
    shapes: dict[str, tuple[int, ...]] = {
        "budget.mlp.0.weight": (256, width + 3),
        "budget.mlp.0.bias": (256,),
        "budget.mlp.2.weight": (1, 256),
        "budget.mlp.2.bias": (1,),
    }
    for name in [f"{kind}.{i}{end}." for kind, end in LAYERS for i in range(layers)]:
        shapes |= attention(name, language)
        shapes |= {f"{name}{norm}.weight": (width,) for norm in ("q_norm", "kv_norm", "ffn_norm")}
        shapes |= {f"{name}ffn.net.0.weight": (hidden, width), f"{name}ffn.net.0.bias": (hidden,)}
        shapes |= {f"{name}ffn.net.2.weight": (width, hidden), f"{name}ffn.net.2.bias": (width,)}
    return shapes


LAYERS = (("scoring_layers", ""), ("reencode_layers", ".core"))


def cacovid(language: LanguageShape) -> dict[str, tuple[int, ...]]:
    width, hidden = language.width, 3 * language.width
    shapes = attention("layers.0.self_attn.", language)
    shapes |= {"layers.0.mlp.gate_proj.weight": (hidden, width), "layers.0.mlp.up_proj.weight": (hidden, width)}
    shapes |= {"layers.0.mlp.down_proj.weight": (width, hidden), "layernorm.weight": (width,)}
    shapes |= {f"layers.0.{norm}.weight": (width,) for norm in ("input_layernorm", "post_attention_layernorm")}
    for head, outputs in (("token_compress", 2), ("frame_compress", 2), ("mode_selection", 3)):
        sizes = [width, width // 2, width // 4, width // 8, width // 16, outputs]
        for i in range(5):
            shapes |= {f"{head}.{2 * i}.weight": (sizes[i + 1], sizes[i]), f"{head}.{2 * i}.bias": (sizes[i + 1],)}
    return shapes


def vqtoken(language: LanguageShape) -> dict[str, tuple[int, ...]]:
    """PyTorch's decoder of one layer, and the map of its queries."""
    width = language.width
    decoder = torch.nn.TransformerDecoder(torch.nn.TransformerDecoderLayer(width, 8, 2 * width, device="meta"), 1)
    inside = {f"transformer_decoder.{name}": tuple(one.shape) for name, one in decoder.state_dict().items()}
    return {"to_q_proj.weight": (width, language.frame_patches), "to_q_proj.bias": (width,), **inside}


LAYOUTS: dict[str, Callable[[LanguageShape], dict[str, tuple[int, ...]]]] = {
    "qtsplus": qtsplus,
    "cacovid": cacovid,
    "vqtoken": vqtoken,
}


def weights(name: str, language: LanguageShape = LANGUAGE, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors in a strategy's layout; maps keep the size of what they map."""
    generator = torch.Generator().manual_seed(seed)
    return {
        tensor: torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.3)
        + (1.0 if "norm" in tensor else 0.0)
        for tensor, shape in LAYOUTS[name](language).items()
    }


@lru_cache
def network_for(name: str, width: int) -> Network | None:
    """Random layers of a strategy for tokens of a width; None where it has none, and for widths that no layer has."""
    if not issubclass(VISUAL.strategy_class(name), TrainedStrategy) or width < 16:
        return None
    language = replace(LANGUAGE, width=width)
    return Network(weights(name, language), language)


def frames_for(grid: Grid, tokens: Tensor) -> Frames:
    """A video before its pooling, whose frames have as many patches as `LANGUAGE` says: its visual tokens, repeated."""
    places = torch.arange(PATCHES, device=tokens.device) % grid.per_frame
    return Frames(tokens.view(grid.frames, grid.per_frame, -1)[:, places], grid.per_frame)
