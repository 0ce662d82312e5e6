"""What strategies see is what transformers computes: keys, values, window attention, norms at each layer's input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vllm_prune.budget.kv import KvSpec
from vllm_prune.kv.saliency import SaliencyStore
from vllm_prune.kv.strategies.base import KvStrategy, LayerView, window_attention
from vllm_prune.kv.strategies.gui_kv import GuiKv

from . import media
from .checkpoints import CELL
from .engines import EnginePool
from .eviction import EVICTING, evict
from .oracle import Oracle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SPEC = KvSpec("gui_kv", keep="0.4", buffer=30)
VISUAL = {"keep": 0.5, "strategy": "uniform"}


# The backend "eager" runs what Dynamo traced, without minutes of code generation.
TRACED = {"enforce_eager": False, "compilation_config": {"backend": "eager"}}


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 96}, TRACED], ids=["whole", "chunks", "traced"])
def test_views_hold_what_transformers_computes(
    options: dict[str, Any],
    family: str,
    engines: EnginePool,
    oracles: Callable[[str], Oracle],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    cell, oracle = CELL[family], oracles(family)
    shown = [media.image(6 * cell, 7 * cell, 1), media.video(4, 4 * cell, 4 * cell, seed=2)]
    request = media.ask(*shown, media.image(5 * cell, 6 * cell, 3), visual=VISUAL)
    llm = engines.get(family, **options, **EVICTING)
    # Cold, then with the prompt's prefix in the cache: queries and norms have to be there all the same.
    for _ in range(2):
        seen: list[LayerView] = []
        original = KvStrategy.select

        def select(
            self: Any, view: LayerView, count: int, seen: list[LayerView] = seen, original: Any = original
        ) -> Any:
            # Values are read from the cache when they are looked at, and by the end it holds other rows.
            values = view.values()
            seen.append(replace(view, values=lambda: values))
            return original(self, view, count)

        monkeypatch.setattr(GuiKv, "select", select)
        monkeypatch.setattr(GuiKv, "wanted", lambda self: frozenset({"queries", "saliency", "coordinates"}))
        # One view for each layer.
        monkeypatch.setattr(GuiKv, "by_head", lambda self: False)
        output = evict(llm, [request], [SPEC], 3)[0]
        monkeypatch.setattr(GuiKv, "select", original)
        places, facts = _prefill(oracle, request)
        assert len(seen) == len(facts)
        for layer, (view, (keys, values, attention, norms)) in enumerate(zip(seen, facts, strict=True)):
            assert view.layer == layer
            assert view.rows == len(output.prompt_token_ids)
            torch.testing.assert_close(view.keys.cpu(), keys, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(view.values().cpu(), values, rtol=1e-4, atol=1e-4)
            assert view.saliency is not None
            assert view.normed_saliency is not None
            both = torch.stack([view.saliency[0], view.normed_saliency[0]]).cpu()
            torch.testing.assert_close(both, norms, rtol=1e-4, atol=1e-4)
            assert view.coordinates is not None
            assert torch.equal(view.coordinates.cpu(), places)
            ours = window_attention(view).flatten(0, 1).cpu()
            torch.testing.assert_close(ours, attention[:, -view.window :], rtol=1e-4, atol=1e-5)
        _check_media(oracle, seen[0], output.prompt_token_ids)


def test_decoding_records_nothing(engines: EnginePool, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = CELL["qwen2_5_vl"]
    llm = engines.get("qwen2_5_vl", max_num_batched_tokens=96, **EVICTING)
    layers = llm.llm_engine.model_config.hf_text_config.num_hidden_layers
    recorded: list[int] = []
    original = SaliencyStore.record

    def record(self: SaliencyStore, hidden: torch.Tensor, normed: torch.Tensor, layer: int) -> None:
        recorded.append(len(hidden))
        original(self, hidden, normed, layer)

    monkeypatch.setattr(SaliencyStore, "record", record)
    output = evict(llm, [media.ask(media.image(6 * cell, 28 * cell, 4))], [None], 20)[0]
    chunks = -(-len(output.prompt_token_ids) // 96)
    assert chunks > 1
    assert len(recorded) == chunks * layers


def _check_media(oracle: Oracle, view: LayerView, prompt: list[int]) -> None:
    pads = {oracle.config.image_token_id, oracle.config.video_token_id}
    labels = view.media[0].tolist()
    assert [label >= 0 for label in labels] == [token in pads for token in prompt]
    shown = [label for label in labels if label >= 0]
    assert shown == sorted(shown)
    assert set(shown) == {0, 1, 2}


@torch.no_grad()
def _prefill(oracle: Oracle, request: media.Request) -> tuple[torch.Tensor, list[tuple[torch.Tensor, ...]]]:
    """Positions of the prefill, [3, n], and per layer its keys, values, attention, and norms around the input norm."""
    text = oracle.hf.model.language_model
    found: dict[str, Any] = {}
    original = type(text).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "prefill" not in found:
            found["prefill"] = kwargs
            config = self.config
            kind, config._attn_implementation = config._attn_implementation, "eager"
            inputs = {key: value for key, value in kwargs.items() if key != "past_key_values"}
            norms: list[torch.Tensor] = []

            def listen(module: Any, args: Any, output: torch.Tensor) -> None:
                norms.append(torch.stack([args[0][0].norm(dim=-1), output[0].norm(dim=-1)]))

            hooks = [layer.input_layernorm.register_forward_hook(listen) for layer in self.layers]
            output = original(self, **inputs, output_attentions=True, use_cache=True)
            for hook in hooks:
                hook.remove()
            config._attn_implementation = kind
            found["norms"], found["output"] = norms, output
        return original(self, *args, **kwargs)

    type(text).forward = forward
    try:
        oracle.answer(request, 1)
    finally:
        type(text).forward = original
    output = found["output"]
    layers = output.past_key_values.layers
    places = found["prefill"]["position_ids"][-3:, 0]
    return places, [
        (layer.keys[0], layer.values[0], weights[0], norms)
        for layer, weights, norms in zip(layers, output.attentions, found["norms"], strict=True)
    ]
