"""Frames before a model pools them: each video gets its own, and the model is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vllm_prune.visual.tower.signals import Captures
from vllm_prune.visual.tower.unpooled import UnpooledFrames


class Model(nn.Module):
    """A model that pools pairs of patches."""

    def apply_pooling(self, image_features: Tensor, stride: int = 2) -> Tensor:
        return image_features.unflatten(1, (-1, stride)).mean(2)

    def embed(self, videos: list[Tensor]) -> list[Tensor]:
        return list(self.apply_pooling(torch.cat(videos)).split([len(video) for video in videos]))


def videos(*lengths: int) -> list[Tensor]:
    return [torch.randn(n, 6, 5, generator=torch.Generator().manual_seed(n)) for n in lengths]


@pytest.mark.parametrize("lengths", [(3,), (2, 4, 1), (3, 3)])
def test_each_video_gets_its_frames(lengths: tuple[int, ...]) -> None:
    model, shown = Model(), videos(*lengths)
    plain = model.embed(shown)
    with Captures({"unpooled": UnpooledFrames(model, enabled=True)}) as captures:
        pooled = model.embed(shown)
    for one, other in zip(pooled, plain, strict=True):
        assert torch.equal(one, other)
    # vLLM gives videos of one length as a tensor, others as a list.
    pixels: Any = torch.stack(shown) if len(set(lengths)) == 1 else shown
    modalities = ["image", *["video"] * len(lengths)]
    found = captures.per_item(len(modalities), modalities, {"pixel_values_videos": pixels})
    assert found[0] == {"unpooled": None}
    for captured, video in zip(found[1:], shown, strict=True):
        assert torch.equal(captured["unpooled"].rows, video)
        assert captured["unpooled"].pooled == 3


def test_the_model_is_left_as_it_was() -> None:
    model = Model()
    captures = Captures({"unpooled": UnpooledFrames(model, enabled=True)})
    assert "apply_pooling" in vars(model)
    with pytest.raises(RuntimeError), captures:
        model.embed([torch.zeros(1, 5, 5)])
    assert "apply_pooling" not in vars(model)


def test_nothing_is_listened_to_where_nothing_is_needed() -> None:
    """Most models pool nothing, and have no such method."""
    with Captures({"unpooled": UnpooledFrames(nn.Identity(), enabled=False)}) as captures:
        pass
    assert captures.per_item(2, ["image", "video"], {}) == [{"unpooled": None}] * 2
    with Captures({"unpooled": UnpooledFrames(Model(), enabled=True)}) as captures:
        pass
    assert captures.per_item(1, ["image"], {}) == [{"unpooled": None}]
