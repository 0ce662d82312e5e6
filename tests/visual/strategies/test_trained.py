"""Strategies with trained layers against the same layers of PyTorch and transformers in float64, and their rules."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid
from vllm_prune.visual.strategies._frames import Frames
from vllm_prune.visual.strategies._trained import LayoutError, Network, TrainedStrategy
from vllm_prune.visual.strategies.base import Context

from .trained import LANGUAGE, LAYOUTS, PATCHES, frames_for, qtsplus, weights
from .vqtoken_long_form import codebook, decoded

NAMES = tuple(LAYOUTS)
ASKING = ("qtsplus", "cacovid")
"""Those that read the question."""
Tensors = dict[str, Tensor]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def double(tensors: Tensors) -> Tensors:
    return {name: tensor.double() for name, tensor in tensors.items()}


def cross_attention(w: Tensors, name: str, rows: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """QTSplus's layer, head by head: what becomes of the rows, and the shares of attention [heads, n, m]."""

    def norm(x: Tensor, which: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}{which}.weight"]

    def project(x: Tensor, which: str) -> Tensor:
        return x @ w[f"{name}{which}_proj.weight"].T + w[f"{name}{which}_proj.bias"]

    size, group = 8, 2
    q, seen = project(norm(rows, "q_norm"), "q"), norm(memory, "kv_norm")
    k, v = project(seen, "k"), project(seen, "v")
    shares, mixed = [], []
    for head in range(4):
        mine, theirs = slice(head * size, (head + 1) * size), slice(head // group * size, (head // group + 1) * size)
        share = (q[:, mine] @ k[:, theirs].T / math.sqrt(size)).softmax(-1)
        shares.append(share)
        mixed.append(share @ v[:, theirs])
    rows = rows + torch.cat(mixed, 1) @ w[f"{name}o_proj.weight"].T
    inner = functional.gelu(norm(rows, "ffn_norm") @ w[f"{name}ffn.net.0.weight"].T + w[f"{name}ffn.net.0.bias"])
    return rows + inner @ w[f"{name}ffn.net.2.weight"].T + w[f"{name}ffn.net.2.bias"], torch.stack(shares)


@pytest.mark.parametrize("layers", [1, 2])
def test_qtsplus_is_its_formula(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYOUTS, "qtsplus", lambda language: qtsplus(language, layers))
    tensors = weights("qtsplus")
    tokens, text, grid = random(30, 32, seed=1), random(5, 32, seed=2), Grid(2, 3, 5)
    context = Context(text=text, network=Network(tensors, LANGUAGE))
    reduction = VISUAL.create("qtsplus").reduce(tokens, grid, 7, context)
    w, rows = double(tensors), text.double()
    for i in range(layers):
        rows, shares = cross_attention(w, f"scoring_layers.{i}.", rows, tokens.double())
    expected = shares.amax((0, 1)).topk(7).indices.sort().values
    assert torch.equal(reduction.kept, expected)
    left = tokens[expected].double()
    for i in range(layers):
        left, _ = cross_attention(w, f"reencode_layers.{i}.core.", left, left)
    wide = torch.cat([tokens, random(30, 3, seed=3)], 1)
    found = reduction.rows(wide)
    torch.testing.assert_close(found[:, :32].double(), left, atol=1e-4, rtol=1e-4)
    assert torch.equal(found[:, 32:], wide[expected, 32:])
    plain = VISUAL.create("qtsplus", {"reencode": False}).reduce(tokens, grid, 7, context)
    assert torch.equal(plain.kept, expected)
    assert torch.equal(plain.rows(wide), wide[expected])


def test_qtsplus_without_layers_behind_the_choice() -> None:
    tensors = {name: tensor for name, tensor in weights("qtsplus").items() if not name.startswith("reencode")}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    names = VISUAL.strategy_class("qtsplus").check(shapes, LANGUAGE)  # type: ignore[attr-defined]
    assert names
    assert not [name for name in names if not name.startswith("scoring_layers.0.")]
    context = Context(text=random(2, 32, seed=2), network=Network(tensors, LANGUAGE))
    tokens = random(12, 32, seed=1)
    reduction = VISUAL.create("qtsplus").reduce(tokens, Grid(1, 3, 4), 4, context)
    assert torch.equal(reduction.rows(tokens), tokens[reduction.kept])


def policy(tensors: Tensors, tokens: Tensor, text: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Ratings of tokens and frames by transformers' decoder layer without a mask, and PyTorch's modules, in float64."""
    from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
    from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding

    config = Qwen2Config(
        hidden_size=32, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0}, num_hidden_layers=1,
        attn_implementation="eager",
    )  # fmt: skip
    layer = Qwen2DecoderLayer(config, 0).double().eval()
    prefix = "layers.0."
    of_layer = {name.removeprefix(prefix): one for name, one in double(tensors).items() if name.startswith(prefix)}
    layer.load_state_dict(of_layer)
    rows = torch.cat([tokens, text]).double()[None]
    places = torch.arange(rows.shape[1])[None]
    with torch.no_grad():
        angles = Qwen2RotaryEmbedding(config)(rows, places)
        output = layer(rows, attention_mask=None, position_ids=places, position_embeddings=angles)
        seen = (output[0] if isinstance(output, tuple) else output).view(-1, 32)[: len(tokens)]
        ratings = []
        for head, part in (("token_compress", seen), ("frame_compress", seen.view(frames, -1, 32).mean(1))):
            maps = [torch.nn.Linear(*tensors[f"{head}.{2 * i}.weight"].T.shape).double() for i in range(5)]
            for i, one in enumerate(maps):
                names = {name: tensors[f"{head}.{2 * i}.{name}"].double() for name in ("weight", "bias")}
                one.load_state_dict(names)
            stack = torch.nn.Sequential(*[step for one in maps for step in (one, torch.nn.SiLU())][:-1])
            normed = part / (part.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * tensors["layernorm.weight"].double()
            logits = stack(normed)
            ratings.append(logits[:, 1] - logits[:, 0])
    return ratings[0], ratings[1]


def test_cacovid_is_its_formula() -> None:
    grid, count = Grid(4, 3, 5), 24
    tokens = random(60, 32, seed=4) + 3 * random(4, 32, seed=7).repeat_interleave(15, 0)
    text, tensors = random(6, 32, seed=5), weights("cacovid", seed=1)
    # Frames are told apart by what their logits have in common taken off.
    tensors["frame_compress.8.bias"] -= torch.tensor([0.0, policy(tensors, tokens, text, 4)[1].mean().item()])
    ratings, frames = policy(tensors, tokens, text, 4)
    # Frames share 12 of the 24 by clipped softmax, of 15 tokens at most int(0.5 * 15 * 1.5 * 0.4) = 4 each.
    powers = (frames / frames.abs().max() * 3).softmax(0).clip(1 / 8, 1.5 / 4)
    shares = (powers / powers.sum() * 12).round().clip(1, 4).long()
    while shares.sum() > 12:
        shares[shares.argmax()] -= 1
    while shares.sum() < 12:
        shares[shares.argmin()] += 1
    assert len(shares.unique()) > 1
    by_frame = ratings.view(4, 15)
    picks = torch.cat([by_frame[t].topk(int(n)).indices + 15 * t for t, n in enumerate(shares)])
    left = torch.tensor([i for i in range(60) if i not in picks.tolist()])
    expected = torch.cat([picks, left[torch.linspace(0, 47, 12).round().long()]])
    context = Context(text=text, network=Network(tensors, LANGUAGE))
    kept = VISUAL.create("cacovid").select(tokens, grid, count, context)
    assert kept.tolist() == sorted(expected.tolist())
    # Another question, other tokens; and all of K by the policy is another choice again.
    other = Context(text=random(1, 32, seed=6).expand(400, 32), network=context.network)
    assert not torch.equal(VISUAL.create("cacovid").select(tokens, grid, count, other), kept)
    assert not torch.equal(VISUAL.create("cacovid", {"policy": 1.0}).select(tokens, grid, count, context), kept)


def test_cacovid_inside_frames_with_given_counts() -> None:
    tokens, text, tensors = random(30, 32, seed=4), random(6, 32, seed=5), weights("cacovid", seed=1)
    ratings, _ = policy(tensors, tokens, text, 2)
    context = Context(text=text, network=Network(tensors, LANGUAGE))
    kept = VISUAL.create("cacovid").select(tokens, Grid(2, 3, 5), 7, context, (6, 1))
    first = ratings[:15].topk(3).indices
    left = torch.tensor([i for i in range(15) if i not in first.tolist()])
    # Of one token none is the policy's; the first place is the only one of an even spacing.
    assert kept.tolist() == [*sorted([*first.tolist(), *left[torch.tensor([0, 6, 11])].tolist()]), 15]


def clip(frames: int, seed: int = 1) -> Frames:
    """A video of eight kinds of patches that lie elsewhere in every frame; four visual tokens per frame."""
    kinds, where = random(8, 32, seed=seed), random(frames * PATCHES, 1, seed=seed + 1).squeeze(1)
    rows = kinds[(where.abs() * 4).long() % 8] + 0.3 * random(frames * PATCHES, 32, seed=seed + 2)
    return Frames(rows.view(frames, PATCHES, 32), 4)


@pytest.mark.parametrize("steps", [1, 3, None])
@pytest.mark.parametrize(("frames", "count"), [(3, 3), (3, 8), (5, 9), (6, 4), (7, 1), (1, 3)])
def test_vqtoken_is_its_formula(frames: int, count: int, steps: int | None) -> None:
    video, tensors = clip(frames), weights("vqtoken")
    # The row that ends a video stays beside the others.
    tokens, grid = random(frames * 4 + 1, 32, seed=7), Grid(1, 1, frames * 4 + 1)
    context = Context(11, network=Network(tensors, LANGUAGE), unpooled=video)
    reduction = VISUAL.create("vqtoken", {"steps": steps}).reduce(tokens, grid, count + 1, context)
    codes, owner = codebook(video.rows.flatten(0, 1), count, 11, steps or 50)
    of_queries = decoded(double(tensors), owner.view(frames, PATCHES).double(), codes)
    assert len(of_queries) == max(frames, count)
    # With fewer rows than frames, evenly spaced ones.
    places = range(count) if count >= frames else [(2 * i + 1) * frames // (2 * count) for i in range(count)]
    left = reduction.rows(tokens)
    torch.testing.assert_close(left[:-1].double(), of_queries[list(places)], atol=1e-4, rtol=1e-4)
    assert torch.equal(left[-1], tokens[-1])
    assert reduction.kept.tolist() == list(range(len(tokens) - count - 1, len(tokens)))


def test_vqtoken_is_pytorch_s_decoder() -> None:
    """The authors' class, called as they call it: queries, then memory, repeated to one length."""
    tensors, maps, codes = weights("vqtoken"), torch.arange(3.0 * PATCHES).view(3, PATCHES) % 5, random(8, 32, seed=3)
    decoder = torch.nn.TransformerDecoder(torch.nn.TransformerDecoderLayer(32, 8, 64), 1).double().eval()
    prefix = "transformer_decoder."
    decoder.load_state_dict({k.removeprefix(prefix): v for k, v in double(tensors).items() if k.startswith(prefix)})
    project = torch.nn.functional.linear
    queries = project(maps, tensors["to_q_proj.weight"], tensors["to_q_proj.bias"]).double().repeat(3, 1)[:8]
    with torch.no_grad():
        theirs = decoder(queries[:, None], codes[:, None].double())[:, 0]
    torch.testing.assert_close(theirs, decoded(double(tensors), maps.double(), codes.double()), atol=1e-5, rtol=1e-5)
    from vllm_prune.visual.strategies.vqtoken import _decode

    ours = _decode(Network(tensors, LANGUAGE), maps, codes)
    torch.testing.assert_close(ours[torch.arange(8) % 3].double(), theirs, atol=1e-4, rtol=1e-4)


def test_vqtoken_repeats_itself_and_reads_every_patch() -> None:
    video, grid, tokens = clip(4), Grid(4, 2, 2), random(16, 32, seed=7)
    context = Context(5, network=Network(weights("vqtoken"), LANGUAGE), unpooled=video)
    state = torch.get_rng_state()

    def rows(context: Context, count: int = 8) -> Tensor:
        return VISUAL.create("vqtoken").reduce(tokens, grid, count, context).rows(tokens)

    first = rows(context)
    assert torch.equal(rows(context), first)
    assert torch.equal(torch.get_rng_state(), state)
    # More rows than frames: one frame's are equal.
    assert torch.equal(first[:4], first[4:])
    assert len(first[:4].unique(dim=0)) == 4
    # Another content's draws, and one frame in which patches have changed places.
    assert not torch.allclose(rows(replace(context, seed=6)), first)
    moved = video.rows.clone()
    moved[2] = moved[2].flip(0)
    changed = rows(replace(context, unpooled=Frames(moved, 4)))
    assert not torch.allclose(changed, first)
    # Without a row that ends the video all are the layer's; a single one is, too, where there is such a row.
    assert not torch.equal(first[-1], tokens[-1])
    alone = VISUAL.create("vqtoken").reduce(random(17, 32, seed=7), Grid(1, 1, 17), 1, context)
    assert not torch.equal(alone.rows(random(17, 32, seed=7))[0], random(17, 32, seed=7)[-1])


def test_vqtoken_groups_many_by_a_sketch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of well separated kinds a sketch makes the same groups, and codes are means of the whole rows."""
    from vllm_prune.visual.strategies import vqtoken

    steps, lloyd = list[int](), vqtoken.spherical_groups

    def noted(units: Tensor, first: Tensor, most: int) -> Tensor:
        steps.append(most)
        return lloyd(units, first, most)

    monkeypatch.setattr(vqtoken, "spherical_groups", noted)

    kinds = torch.nn.functional.normalize(random(12, 512, seed=1))
    video = Frames((kinds.repeat(17, 1)[:196] + 0.001 * random(196, 512, seed=2)).view(4, PATCHES, 512), 4)
    exact = VISUAL.create("vqtoken")._codebook(video, 12, 3)  # type: ignore[attr-defined]
    monkeypatch.setattr(vqtoken, "SKETCH", 11)
    codes, maps = VISUAL.create("vqtoken")._codebook(video, 12, 3)  # type: ignore[attr-defined]
    assert codes.shape == (12, 512)

    def same(maps: Tensor) -> Tensor:
        return maps.flatten()[:, None] == maps.flatten()[None]

    assert torch.equal(same(maps), same(exact[1]))
    assert len(maps.unique()) == 12
    VISUAL.create("vqtoken", {"steps": 9})._codebook(video, 12, 3)  # type: ignore[attr-defined]
    assert steps == [50, 4, 9]


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_weights_are_computed_in_float32(name: str) -> None:
    tensors = {key: tensor.bfloat16() for key, tensor in weights(name).items()}
    tokens, text, grid = random(60, 32, seed=4), random(6, 32, seed=5), Grid(4, 3, 5)
    narrow = Context(text=text, network=Network(tensors, LANGUAGE), unpooled=frames_for(grid, tokens))
    wide = replace(narrow, network=Network({key: one.float() for key, one in tensors.items()}, LANGUAGE))
    ours, expected = (VISUAL.create(name).reduce(tokens, grid, 20, context) for context in (narrow, wide))
    assert torch.equal(ours.kept, expected.kept)
    assert torch.equal(ours.rows(tokens), expected.rows(tokens))


@pytest.mark.parametrize("name", NAMES)
def test_a_layout_that_does_not_fit(name: str) -> None:
    cls = VISUAL.strategy_class(name)
    assert issubclass(cls, TrainedStrategy)
    shapes = LAYOUTS[name](LANGUAGE)
    needed = cls.check(shapes, LANGUAGE)
    assert set(needed) <= set(shapes)
    # What is not used is what the strategy leaves to the budget.
    unused = {"qtsplus": {"budget"}, "cacovid": {"mode_selection"}, "vqtoken": set()}
    assert {part.split(".")[0] for part in set(shapes) - set(needed)} == unused[name]
    for tensor in needed:
        with pytest.raises(LayoutError):
            cls.check({other: shape for other, shape in shapes.items() if other != tensor}, LANGUAGE)
        with pytest.raises(LayoutError):
            cls.check({**shapes, tensor: (*shapes[tensor][:-1], shapes[tensor][-1] + 1)}, LANGUAGE)
    with pytest.raises(LayoutError, match=r"width 64 .* needs \[.*64.*\]"):
        cls.check(shapes, replace(LANGUAGE, width=64))


@pytest.mark.parametrize("name", ASKING)
def test_layers_that_are_copies_of_the_language_model_s_have_its_heads(name: str) -> None:
    cls: Any = VISUAL.strategy_class(name)
    with pytest.raises(LayoutError, match="4 of them for keys"):
        cls.check(LAYOUTS[name](LANGUAGE), replace(LANGUAGE, kv_heads=4))


def test_vqtoken_has_to_fit_the_frames() -> None:
    cls: Any = VISUAL.strategy_class("vqtoken")
    shapes = LAYOUTS["vqtoken"](LANGUAGE)
    for language, words in (
        (replace(LANGUAGE, frame_patches=64), r"to_q_proj.weight has .*\[32, 49\].* 64 patches per frame needs"),
        (replace(LANGUAGE, frame_patches=0), "frames of one size"),
        (replace(LANGUAGE, width=36), "8 heads"),
    ):
        with pytest.raises(LayoutError, match=words):
            cls.check(shapes, language)
    # Any number of attention heads of the language model will do.
    assert cls.check(shapes, replace(LANGUAGE, heads=2, kv_heads=1))


@pytest.mark.parametrize("name", ASKING)
def test_what_was_not_given_is_named(name: str) -> None:
    tokens, network = random(24, 32, seed=1), Network(weights(name), LANGUAGE)
    for context, words in ((Context(network=network), "'text'"), (Context(text=tokens[:3]), "'weights'")):
        with pytest.raises(ValueError, match=words):
            VISUAL.create(name).select(tokens, Grid(2, 3, 4), 5, context)


def test_vqtoken_names_what_was_not_given() -> None:
    tokens, grid = random(24, 32, seed=1), Grid(2, 3, 4)
    network = Network(weights("vqtoken"), LANGUAGE)
    for context, words in (
        (Context(network=network), "'unpooled'"),
        (Context(unpooled=frames_for(grid, tokens)), "'weights'"),
    ):
        with pytest.raises(ValueError, match=words):
            VISUAL.create("vqtoken").select(tokens, grid, 5, context)
