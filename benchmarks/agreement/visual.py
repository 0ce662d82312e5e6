"""What the authors' code keeps of an item, called as their models call it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vllm_prune.catalogue import VISUAL

from .cases import Case

Namespace = Mapping[str, Any]


def ours(name: str, case: Case, count: int, options: Mapping[str, Any]) -> Tensor:
    """What the strategy of that name keeps."""
    return VISUAL.create(name, dict(options)).select(case.tokens, case.grid, count, case.context)


def cdpruner(code: Namespace, case: Case) -> Tensor:
    """Their tower returns features, image embeddings and text embeddings.

    They take the cosine of the last two negative, as CLIP's points the other way, so the text here is turned round.
    """
    assert case.context.text is not None
    every = case.tokens[None]
    tower = _answers(every, every, -case.context.text)
    owner = SimpleNamespace(get_model=lambda: _model(tower), visual_token_num=case.count)
    return code["LlavaMetaForCausalLM"].encode_images(owner, None)[1][0].nonzero().squeeze(1)


def flashvlm(code: Namespace, case: Case) -> Tensor:
    """Their tower returns features and attention per head; what they project last is what they keep."""
    assert case.context.text is not None
    seen = list[Tensor]()

    def projector(rows: Tensor) -> Tensor:
        seen.append(rows)
        return rows

    attention = case.attention.flatten()[None, None]
    owner = SimpleNamespace(
        get_model=lambda: SimpleNamespace(
            get_vision_tower=lambda: _answers(case.tokens[None], attention), mm_projector=projector
        ),
        get_visual_token_num=lambda: case.count,
    )
    code["LlavaMetaForCausalLM"].encode_images(owner, None, [case.context.text])
    return _Numbered(case.tokens).of(seen[-1][0])


def fastvid(code: Namespace, case: Case) -> Tensor:
    """Their language model prunes in front of its first layer, which here notes the positions that are left."""
    noted = list[Tensor]()

    def layer(states: Tensor, **named: Any) -> tuple[Tensor]:
        noted.append(named["position_ids"][0])
        return (states,)

    frames = case.frames
    config = SimpleNamespace(
        output_attentions=False, output_hidden_states=False, use_cache=False, use_return_dict=False
    )
    owner = SimpleNamespace(
        config=config, gradient_checkpointing=False, training=False, layers=[layer], norm=lambda states: states,
        rotary_emb=lambda states, places: (states, states), _update_causal_mask=lambda *_: None,
        video_start_idx=0, video_token_len=case.grid.tokens, frame_num=case.grid.frames,
        frame_attn_weights=case.attention, frame_global_features=frames.mean(1),
        fastvid_retention_ratio=case.keep, fastvid_DySeg_c=8, fastvid_DySeg_tau=0.9, fastvid_STPrune_d=0.4,
        fastvid_DTM_p=4, fastvid_DTM_beta=0.6,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        code["Qwen2Model"].forward(owner, inputs_embeds=case.tokens[None])
    return noted[0]


def holitom(code: Namespace, case: Case) -> Tensor:
    """The steps of their `prepare_inputs_labels_for_multimodal` for one video; positions are found by the features."""
    owner = code["LlavaMetaForCausalLM_holitom"]()
    frames, threshold = case.frames, 0.8
    unit = normalize(frames, dim=-1)
    similar = (unit[1:] * unit[:-1]).sum(-1)
    windows, saved = owner.select_static_windows(similar, case.grid.frames, threshold, 1024)
    ratio = min(case.keep / ((case.grid.tokens - saved) / case.grid.tokens), 1)
    static, dynamic, _, attention, still, moving = owner.get_static_dynamic_features(
        frames, case.attention, windows, similar, threshold
    )
    kept = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for n, (start, end) in enumerate(windows):
            places = moving[n].expand(end - start + 1, -1)
            _, found = owner.merge_tokens_by_attention_density(dynamic[n], attention[n], places, ratio, 0, 0.6, 7)
            kept.append((found + torch.arange(start, end + 1)[:, None] * case.grid.per_frame).flatten())
            if end > start:
                _, found = owner.merge_tokens_by_density(static[n][None], still[n], ratio, 0.6, 7)
                kept.append(found.flatten() + start * case.grid.per_frame)
    return torch.cat(kept).long().sort().values


def vidcom2(code: Namespace, case: Case) -> Tensor:
    """They return features; an equal one is unique to its cell."""
    kept = code["vidcom2_compression"](case.tokens, "qwen2_5_vl", case.keep, case.grid.per_frame)
    return _Numbered(case.tokens).of(kept)


def divprune(code: Namespace, case: Case) -> Tensor:
    """Over all cells of the item."""
    owner = code["LlavaMetaForCausalLM"]
    here = SimpleNamespace(pairwise_cosine_similarity=lambda rows: owner.pairwise_cosine_similarity(None, rows))
    return owner.DivPrune(here, case.tokens, case.grid.tokens, threshold_ratio=case.keep)[0].sort().values


def vcast(code: Namespace, case: Case) -> Tensor:
    """Each frame keeps one token at least."""
    return code["_v_cast_compress_frames"](case.frames, [], case.keep, 1)[2]


def idpruner(code: Namespace, case: Case) -> Tensor:
    """The scores of their selector are the case's; its prompt is the item."""
    state = SimpleNamespace(input_ids=torch.zeros(1, case.grid.tokens), inputs_embeds=case.tokens[None], case=case)
    return code["idpruner"](state, ratio=1 - case.keep, selector_path="")[0].nonzero().squeeze(1)


def idpruner_names() -> dict[str, Any]:
    """What stands for their helpers: every token is visual, and the scores are the case's."""
    current = dict[str, Case]()

    def tokens(state: Any) -> tuple[Tensor, Tensor, None, None]:
        current["case"] = state.case
        return torch.arange(state.case.grid.tokens), torch.arange(0), None, None

    def scores(**_: Any) -> Tensor:
        found = current["case"].context.scores
        assert found is not None
        return found[None]

    return {
        "_extract_and_validate_vision_token_info": tokens,
        "get_universal_selector_scores": scores,
        "resolve_num_tokens_to_keep": lambda ratio, count: round(count * (1 - ratio)),
    }


def aot(code: Namespace, case: Case) -> Tensor:
    """Anchors of every frame with what is carried to them, then over the frames of each clip of four.

    Both layers of attention are the same one, and no pooling stands between the two steps, as here.
    """
    owner = code["LlavaMetaForCausalLM"]
    here = SimpleNamespace(Sinkhorn_v1=lambda *of: owner.Sinkhorn_v1(None, *of))
    frames, attention, each = case.frames, case.attention.clone(), round(case.keep * case.grid.per_frame)
    local = owner.window_cls_selection_siglip(None, attention, each // 2)
    everywhere = attention.scatter(1, local, 0).topk(each - each // 2, dim=1).indices
    anchored = torch.zeros_like(attention, dtype=torch.bool).scatter_(1, torch.cat([local, everywhere], 1), True)
    merged = owner.token_merging_siglip_with_OTA(here, frames.clone(), anchored)
    kept = []
    for start in range(0, case.grid.frames, 4):
        anchors = merged[start][anchored[start]][None]
        kept.append(anchored[start].nonzero().squeeze(1) + start * case.grid.per_frame)
        for later in range(1, min(4, case.grid.frames - start)):
            frame = start + later
            rows = merged[frame][anchored[frame]][None]
            since = torch.full(rows.shape[:2], float(later))
            anchors, fresh = owner.ota_merge_N_to_M_time(
                here, anchors, rows, torch.zeros(anchors.shape[:2]), since, keep_ratio=0.3
            )
            kept.append(anchored[frame].nonzero().squeeze(1)[fresh[0]] + frame * case.grid.per_frame)
    return torch.cat(kept)


class _Numbered:
    """Finds cells by their features, which no two cells of a case share."""

    def __init__(self, tokens: Tensor) -> None:
        self._places = {row.numpy().tobytes(): place for place, row in enumerate(tokens)}

    def of(self, rows: Tensor) -> Tensor:
        """Where the rows stand, ascending."""
        return torch.tensor(sorted(self._places[row.numpy().tobytes()] for row in rows.contiguous()))


def _answers(*values: Tensor) -> Callable[..., tuple[Tensor, ...]]:
    return lambda *_, **__: values


def _model(tower: Callable[..., Any]) -> SimpleNamespace:
    return SimpleNamespace(get_vision_tower=lambda: tower, mm_projector=lambda rows: rows)
