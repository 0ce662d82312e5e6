"""DyVTE's gates: they read the hidden states that transformers computes, and decide which rows stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.gate_weights import gate_weights, reference, rigged
from vllm_prune.budget.kv import KEY, KvSpec
from vllm_prune.visual.strategies._trained import Network

from . import media
from .checkpoints import CELL, TEXT
from .engines import EnginePool, runner_of
from .eviction import EVICTING, compactions, compare_with_masked, evict, journal, scheduler_of
from .layer_groups import LAYERS, journal_by_layer, options
from .oracle import Oracle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SPEC = KvSpec("dyvte", keep="0.4", buffer=12)
NEVER = (False, False, False)


def asked(family: str) -> dict[str, media.Request]:
    """Prompts of one chunk and of several, with a video, under a visual budget, and with nothing behind the picture."""
    cell = CELL[family]
    pictures = [media.image(4 * cell, 5 * cell, 1), media.image(7 * cell, 8 * cell, 2)]
    clip, half = media.video(4, 4 * cell, 4 * cell, seed=3), {"keep": 0.5, "strategy": "uniform"}
    return {
        "short": media.ask(pictures[0]),
        "long": media.ask(*pictures, question="which of the two is larger, and what is in the other one?"),
        "pruned": media.ask(pictures[1], clip, visual=half),
        "at the end": media.with_media(f"<|im_start|>what is it? {media.IMAGE}", pictures[1]),
        "text": media.ask(question="nothing is shown here " * 4),
    }


Read = dict[str, tuple[Tensor, list[bool]]]
"""By the engine's number of a request float64 [gates, 2, D], mean of the text and last token, and which layers are
behind an exit."""


@contextmanager
def reading() -> Iterator[Read]:
    """What gates have read when a request is compacted, and what they said."""
    found: Read = {}

    def record(compactor: Any, command: Any, request: Any) -> None:
        gates, prompt = compactor.gates, request.gated
        if prompt is not None and prompt.text:
            read = torch.stack([sums[2 * prompt.slot : 2 * prompt.slot + 2].double().cpu() for sums in gates.sums])
            read[:, 0] /= len(prompt.text)
            found[command.request_id.split("-")[0]] = (
                read,
                [bool(gates.exited(layer, prompt)) for layer in range(LAYERS)],
            )

    with compactions(record):
        yield found


@contextmanager
def saying(llm: Any, answers: Sequence[bool]) -> Iterator[None]:
    """Gates that say so behind each layer, whatever they read."""
    gates = runner_of(llm).kv_gates
    before = gates.network
    gates.network = Network(rigged(answers, TEXT["hidden_size"]), before.language).to(gates.device)
    try:
        yield
    finally:
        gates.network = before


def is_visual(oracle: Oracle, output: Any) -> Tensor:
    pads = {oracle.config.image_token_id, oracle.config.video_token_id}
    return torch.tensor([token in pads for token in output.prompt_token_ids])


@torch.no_grad()
def text_states(oracle: Oracle, request: media.Request, visual: Tensor) -> list[Tensor]:
    """Per layer float64 [n, D], what transformers hands on from it, of the text behind the last visual token."""
    found: list[Tensor] = []

    def listen(module: Any, args: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        found.append(states.reshape(-1, states.shape[-1]).double())

    hooks = [layer.register_forward_hook(listen) for layer in oracle.hf.model.language_model.layers]
    oracle.answer(request, 1)
    for hook in hooks:
        hook.remove()
    behind = int(visual.nonzero()[-1]) + 1
    assert all(len(states) == len(visual) for states in found)
    return [states[behind:] for states in found]


def test_gates_read_what_transformers_computes(
    family: str, engines: EnginePool, summing: dict[str, Any], gates: Path, oracles: Callable[[str], Oracle]
) -> None:
    llm, oracle, tensors = engines.get(family, **summing), oracles(family), load_file(gates)
    requests = asked(family)
    alone: dict[str, Any] = {}
    decided = set()
    for name in ("short", "long", "pruned"):
        with reading() as read, journal() as found:
            [output] = evict(llm, [requests[name]], [SPEC], 20)
        # Evicted once, though a buffer has been decoded since.
        [alone[name]] = found.of(int(output.request_id))
        states = text_states(oracle, requests[name], is_visual(oracle, output))
        (features, exited) = read[output.request_id]
        _check(features, states)
        exits = [leave > stay for stay, leave in (reference(tensors, gate, states[gate]) for gate in range(LAYERS - 1))]
        assert exited == [any(exits[:layer]) for layer in range(LAYERS)]
        decided.update(exits)
    assert decided == {True, False}
    # Together, with every prompt in the prefix cache, of which only those without gates take something.
    names = ["long", "short", "pruned", "short"]
    with reading() as read, journal() as found:
        outputs = evict(llm, [requests[name] for name in names], [SPEC, SPEC, SPEC, None], 20)
    assert [output.num_cached_tokens > 0 for output in outputs] == [False, False, False, True]
    assert len(outputs[0].prompt_token_ids) > 96 > len(outputs[1].prompt_token_ids)
    for name, output in zip(names[:3], outputs[:3], strict=True):
        _check(read[output.request_id][0], text_states(oracle, requests[name], is_visual(oracle, output)))
        [kept] = found.of(int(output.request_id))
        for one, other in zip(kept, alone[name], strict=True):
            assert torch.equal(one, other)
    # Workers hear of what has finished with the next step.
    llm.llm_engine.step()
    assert sorted(runner_of(llm).kv_gates.free) == list(range(16))
    assert scheduler_of(llm).windows.whole == set()


def _check(features: Tensor, states: Sequence[Tensor]) -> None:
    for (mean, last), of_layer in zip(features, states[:-1], strict=True):
        torch.testing.assert_close(mean, of_layer[:-1].mean(dim=0), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(last, of_layer[-1], rtol=1e-3, atol=1e-4)
        # Controls: with the last token in it, and of the layer before, it would be another mean.
        assert (mean - of_layer.mean(dim=0)).abs().max() > 1e-2
    assert (features[1] - features[0]).abs().max() > 1e-2


def test_what_gates_say_decides_which_rows_stay(
    family: str, engines: EnginePool, summing: dict[str, Any], oracles: Callable[[str], Oracle]
) -> None:
    llm, oracle, request = engines.get(family, **summing), oracles(family), asked(family)["long"]
    [output] = evict(llm, [request], [None], 1)
    visual = is_visual(oracle, output)
    text = (~visual).nonzero().squeeze(1)
    kept = {}
    for answers in (NEVER, (True, False, False), (False, True, False), (False, False, True)):
        for count in (len(text), len(text) + 9, len(text) - 9):
            with saying(llm, answers), journal() as found:
                [output] = evict(llm, [request], [KvSpec("dyvte", max_tokens=count, buffer=4)], 30)
            [kept[answers, count]] = found.of(int(output.request_id))
            assert all(layer.shape == (2, count) for layer in kept[answers, count])
    with journal() as found:
        [output] = evict(llm, [request], [KvSpec("snapkv", max_tokens=len(text), buffer=200)], 2)
    [by_attention] = found.of(int(output.request_id))
    for (answers, count), layers in kept.items():
        first = answers.index(True) if True in answers else LAYERS
        for number, layer in enumerate(layers):
            if number <= first:
                # In front of an exit, and without one.
                assert torch.equal(layer, kept[NEVER, count][number])
                assert visual[layer].any()
            else:
                assert visual[layer].sum(dim=1).tolist() == [max(0, count - len(text))] * 2
    for number in range(LAYERS):
        assert torch.equal(kept[NEVER, len(text)][number], by_attention[number])
    # What the authors keep in late layers, and the answers of a cache that has lost the rest.
    assert torch.equal(kept[(True, False, False), len(text)][LAYERS - 1], text.expand(2, -1))
    with saying(llm, (True, False, False)):
        spec = KvSpec("dyvte", max_tokens=len(text), buffer=1000)
        assert compare_with_masked(llm, [request], [spec], 20, oracle) == [1]


def test_without_text_behind_a_picture_it_is_snapkv(family: str, engines: EnginePool, summing: dict[str, Any]) -> None:
    llm, requests = engines.get(family, **summing), [asked(family)[name] for name in ("at the end", "text")]
    kept = []
    for name in ("dyvte", "snapkv"):
        with saying(llm, (True, True, True)), reading() as read, journal() as found:
            outputs = evict(llm, requests, [KvSpec(name, keep="0.5", buffer=200)] * 2, 3)
        assert read == {}
        kept.append([layer for output in outputs for layer in found.of(int(output.request_id))[0]])
    assert len(kept[0]) == 2 * LAYERS
    for one, other in zip(*kept, strict=True):
        assert torch.equal(one, other)


def test_a_request_that_is_preempted_in_its_prefill_is_read_anew(
    family: str, engines: EnginePool, summing: dict[str, Any], oracles: Callable[[str], Oracle]
) -> None:
    from vllm import SamplingParams

    llm, oracle, request = engines.get(family, **summing), oracles(family), asked(family)["long"]
    sampling = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, extra_args={KEY: SPEC.wire()})
    llm.llm_engine.add_request("77", request.for_vllm(), sampling)
    gates, outputs = runner_of(llm).kv_gates, []
    # It has to come back to the sums that it has left.
    slot, others = gates.free[0], gates.free[1:]
    del gates.free[1:]
    with reading() as read:
        while not gates.sums[0][2 * slot].any():
            outputs += llm.llm_engine.step()
        assert not any(output.outputs[0].token_ids for output in outputs)
        assert llm.reset_prefix_cache(reset_running_requests=True)
        while llm.llm_engine.has_unfinished_requests():
            outputs += llm.llm_engine.step()
    [(features, _)] = read.values()
    _check(features, text_states(oracle, request, is_visual(oracle, outputs[-1])))
    llm.llm_engine.step()
    assert gates.free == [slot]
    gates.free += others


@pytest.mark.runner("v1", "groups of layers are refused on V2")
@pytest.mark.parametrize("family", ["qwen2_5_vl"])
def test_groups_of_layers_get_what_visual_exit_gives_them(
    family: str, engines: EnginePool, gates: Path, oracles: Callable[[str], Oracle]
) -> None:
    facts = options((2,))["additional_config"]["vllm_prune"] | {"weights": {"dyvte": str(gates)}}
    llm = engines.get(family, additional_config={"vllm_prune": facts}, max_num_batched_tokens=96, **EVICTING)
    request = asked(family)["long"]
    kept = {}
    for name, answers in (("dyvte", (True, False, False)), ("dyvte", NEVER), ("visual_exit", NEVER)):
        with saying(llm, answers), journal_by_layer() as found:
            [output] = evict(llm, [request], [KvSpec(name, keep="0.01", buffer=4)], 20)
        kept[name, answers] = found[output.request_id]
        # The first group, layers 0 and 1, keeps everything; the last layer as many rows as there is text.
        assert [*kept[name, answers]] == [2]
    visual = is_visual(oracles(family), output)
    [exited], [never], [by_hand] = (layers[2] for layers in kept.values())
    assert torch.equal(exited, by_hand)
    assert torch.equal(exited, (~visual).nonzero().squeeze(1).expand(2, -1))
    assert never.shape == exited.shape
    assert visual[never].any()


@pytest.mark.parametrize("family", ["qwen2_5_vl"])
def test_gates_that_do_not_fit_are_no_start(family: str, engines: EnginePool, tmp_path: Path) -> None:
    from vllm.distributed import cleanup_dist_env_and_memory

    save_file(gate_weights(LAYERS, 2 * TEXT["hidden_size"], 8), tmp_path / "wide.safetensors")
    wrong = {"vllm_prune": {"weights": {"dyvte": str(tmp_path / "wide.safetensors")}}}
    with pytest.raises(Exception, match=r"weights\.dyvte: .* does not fit this model: visual_gates_router\.0\.w1"):
        engines.get(family, additional_config=wrong, **EVICTING)
    cleanup_dist_env_and_memory()
