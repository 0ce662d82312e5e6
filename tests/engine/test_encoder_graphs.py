"""The two methods that vLLM calls around an encoder graph, on a real model; the graphs themselves need a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vllm_prune.visual.item_plan import ItemPlan, unpruned

from .engines import EnginePool, model_of

GRIDS = [[1, 8, 12], [1, 8, 8], [1, 12, 8]]


def batch_of(model: Any) -> dict[str, Any]:
    """Three images: pruned, unpruned, pruned."""
    vision = model.config.vision_config
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    patches = sum(t * h * w for t, h, w in GRIDS)
    generator = torch.Generator().manual_seed(0)
    rows = [ItemPlan("uniform", "{}", 10, 1).encode(), unpruned(), ItemPlan("divprune", "{}", 7, 2).encode()]
    return {
        "pixel_values": torch.rand(patches, width, generator=generator),
        "image_grid_thw": torch.tensor(GRIDS),
        "image_prune": rows,
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@torch.inference_mode()
def test_graph_outputs_are_pruned_like_eager_ones(engines: EnginePool, family: str) -> None:
    model = model_of(engines.get(family))
    batch = batch_of(model)
    eager = model.embed_multimodal(**{**batch, "image_prune": list(batch["image_prune"])})
    # A graph batch holds chosen items in an order of its own.
    indices = [2, 0]
    chosen = model.select_encoder_cudagraph_items(batch, indices)
    assert [row.tolist() for row in chosen["image_prune"]] == [batch["image_prune"][i].tolist() for i in indices]
    sizes = [h * w // 4 for _, h, w in GRIDS]
    tower = model.visual(chosen["pixel_values"], grid_thw=torch.as_tensor(chosen["image_grid_thw"]).tolist())
    found: dict[int, torch.Tensor] = {}
    model.postprocess_encoder_output({"default": tower}, indices, sizes, found, clone=True, batch_mm_kwargs=chosen)
    assert set(found) == {0, 2}
    for index in indices:
        assert found[index].shape == eager[index].shape
        torch.testing.assert_close(found[index], eager[index], atol=1e-5, rtol=1e-4)
    assert eager[1].shape[1] == model.output_width
