"""Hidden states that gates read: exact whatever the chunks, whoever else is in the step, and inside CUDA graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests import emulated_graphs
from tests.gate_weights import gate_weights, reference, rigged
from tests.kv.keys import key
from vllm_prune.kv import gates
from vllm_prune.kv.gates import GatedPrompt, VisualGates
from vllm_prune.kv.strategies.base import TEXT
from vllm_prune.kv.token_sums import SumPlan
from vllm_prune.visual.strategies._trained import LanguageShape, Network

CPU = torch.device("cpu")
LAYERS, WIDTH, TOKENS = 4, 6, 16
LANGUAGE = LanguageShape(WIDTH, 2, 1, layers=LAYERS)
NAMES = [f"model.layers.{layer}.self_attn.attn" for layer in range(LAYERS)]


class Norm(nn.Module):
    """In the place of vLLM's: with a residual it adds the two first, and hands back the normed and the added."""

    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> Any:
        """Twice the hidden state, and that, where there is a residual."""
        return hidden * 2 if residual is None else ((hidden + residual) * 2, hidden + residual)


def model_of(decoders: list[nn.Module]) -> nn.Module:
    return nn.ModuleDict({"model": nn.ModuleDict({"layers": nn.ModuleList(decoders)})})


def made(tensors: dict[str, Tensor] | None = None, requests: int = 2) -> tuple[nn.Module, VisualGates]:
    decoders = [nn.ModuleDict({"input_layernorm": Norm()}) for _ in range(LAYERS)]
    model = model_of(decoders)
    network = Network(tensors or gate_weights(LAYERS, WIDTH, 32), LANGUAGE)
    found = VisualGates(model, NAMES, network, requests, TOKENS, CPU, key())
    assert found.hooked
    return model, found


def run(model: nn.Module, states: Tensor, fused: bool = True) -> None:
    """A step: states [LAYERS, n, WIDTH] at the layers' inputs."""
    for layer, hidden in zip(model["model"]["layers"], states, strict=True):
        norm = layer["input_layernorm"]
        _ = norm(hidden / 4, hidden * 3 / 4) if fused else norm(hidden)


def prompt_of(text: int, visual: int, behind: int) -> Tensor:
    """Media items of a prompt with one picture."""
    return torch.tensor([TEXT] * text + [0] * visual + [TEXT] * behind)


@pytest.mark.parametrize(
    ("media", "text"),
    [
        (prompt_of(3, 4, 5), range(7, 11)),
        # Of several pictures, and of one that has text inside, what stands behind the last visual token.
        (torch.tensor([0, TEXT, TEXT, 1, TEXT, 1, TEXT, TEXT]), range(6, 7)),
        # Nothing between it and the prompt's last token; a picture at the end; none at all.
        (prompt_of(3, 4, 1), range(7, 7)),
        (prompt_of(3, 4, 0), range(6, 6)),
        (prompt_of(6, 0, 0), range(5, 5)),
    ],
)
def test_text_is_what_stands_behind_the_last_visual_token(media: Tensor, text: range) -> None:
    found = GatedPrompt.of(3, media)
    assert (found.slot, found.text) == (3, text)
    parts = list(found.parts(0, len(media), 10))
    expected = [(6, 10 + text.start, 10 + text.stop), (7, 10 + text.stop, 11 + text.stop)]
    assert parts == (expected if text else [])


@given(st.lists(st.integers(0, 5), max_size=8), st.integers(0, 4), st.integers(0, 5), st.integers(0, 9))
def test_chunks_read_each_token_once(counts: list[int], text: int, visual: int, behind: int) -> None:
    media = prompt_of(text + 1, visual, behind)
    prompt, before, seen = GatedPrompt.of(0, media), 0, dict[int, list[int]]()
    # What is decoded comes behind the prompt in further chunks, and is read by nobody.
    for count in [*counts, len(media), 3]:
        for number, start, end in prompt.parts(before, count, 100):
            seen.setdefault(number, []).extend(range(start - 100 + before, end - 100 + before))
        before += count
    assert seen == ({0: [*prompt.text], 1: [len(media) - 1]} if prompt.text else {})


@pytest.mark.parametrize("fused", [True, False])
def test_chunks_of_two_prompts_beside_other_tokens(fused: bool) -> None:
    tensors = gate_weights(LAYERS, WIDTH, 32)
    model, found = made(tensors)
    source = torch.Generator().manual_seed(1)
    states = torch.randn(2, LAYERS, 12, WIDTH, generator=source)
    prompts = [found.acquire(prompt_of(3, 4, 5)), found.acquire(prompt_of(1, 3, 8))]
    for first, second in (((0, 5), (0, 2)), ((5, 11), (2, 9)), ((11, 12), (9, 12))):
        # A token of another request stands in front of each part, and padding behind.
        step, plan, at = torch.randn(LAYERS, TOKENS, WIDTH, generator=source), SumPlan(), 1
        for prompt, of_one, (start, end) in zip(prompts, states, (first, second), strict=True):
            step[:, at : at + end - start] = of_one[:, start:end]
            plan.parts += prompt.parts(start, end - start, at)
            at += end - start + 1
        found.arm(plan)
        run(model, step, fused)
        found.disarm()
        # Nothing is added by a step of others.
        run(model, step, fused)
    for prompt, of_one in zip(prompts, states, strict=True):
        exits = []
        for gate in range(LAYERS - 1):
            # What leaves a layer is what the next one gets.
            behind = of_one[gate + 1, prompt.text.start :]
            text, last = found.sums[gate][2 * prompt.slot : 2 * prompt.slot + 2]
            features = torch.cat([text / len(prompt.text), last])
            stay, leave = reference(tensors, gate, behind)
            np.testing.assert_allclose(found.logits(gate, features).tolist(), [stay, leave], rtol=1e-4, atol=1e-5)
            exits.append(leave > stay)
        expected = [any(exits[:layer]) for layer in range(LAYERS)]
        assert [bool(found.exited(layer, prompt)) for layer in range(LAYERS)] == expected


def test_the_reference_tells_gates_apart() -> None:
    """A control for the above: a mean with the last token in it, or the other order, gives other logits."""
    tensors, states = gate_weights(LAYERS, WIDTH, 32), torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2))
    right = reference(tensors, 0, states)
    turned = {**tensors, "visual_gates_router.0.w1.weight": tensors["visual_gates_router.0.w1.weight"].roll(WIDTH, 1)}
    assert abs(np.subtract(right, reference(turned, 0, states))).min() > 1e-2
    # The last token twice, so that it is in the mean, too.
    assert abs(np.subtract(right, reference(tensors, 0, torch.cat([states, states[-1:]])))).min() > 1e-3


@pytest.mark.parametrize(
    ("answers", "exited"),
    [
        ((False, False, False, True), (False, False, False, False)),
        ((True, False, False, False), (False, True, True, True)),
        ((False, True, False, False), (False, False, True, True)),
        ((False, False, True, False), (False, False, False, True)),
    ],
)
def test_from_the_first_gate_on_that_says_so(answers: tuple[bool, ...], exited: tuple[bool, ...]) -> None:
    """Whatever later gates say; and the last one has no layer behind it."""
    model, found = made(rigged(answers, WIDTH))
    prompt = found.acquire(prompt_of(2, 3, 4))
    found.arm(SumPlan([*prompt.parts(0, 9, 0)]))
    run(model, torch.randn(LAYERS, 9, WIDTH, generator=torch.Generator().manual_seed(3)))
    # Groups of layers are compacted one after the other, and the first not at all where it keeps everything.
    assert [bool(found.exited(layer, prompt)) for layer in (3, 2, 1, 0)] == [*reversed(exited)]


@pytest.mark.parametrize("media", [prompt_of(6, 0, 0), prompt_of(2, 3, 0), prompt_of(2, 3, 1)])
def test_no_gate_is_asked_without_text_behind_a_picture(media: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = made(rigged((True,) * LAYERS, WIDTH))
    monkeypatch.setattr(VisualGates, "logits", lambda self, gate, features: pytest.fail("asked"))
    prompt = found.acquire(media)
    assert not any(found.exited(layer, prompt) for layer in range(LAYERS))


def test_equal_logits_keep_the_picture() -> None:
    model, found = made({name: torch.zeros_like(one) for name, one in gate_weights(LAYERS, WIDTH, 4).items()})
    prompt = found.acquire(prompt_of(2, 3, 4))
    found.arm(SumPlan([*prompt.parts(0, 9, 0)]))
    run(model, torch.ones(LAYERS, 9, WIDTH))
    assert not found.exited(LAYERS - 1, prompt)


def test_sums_are_empty_for_the_next_request() -> None:
    model, found = made(rigged((True,) * LAYERS, WIDTH), requests=1)
    prompt = found.acquire(prompt_of(2, 3, 4))
    with pytest.raises(RuntimeError, match="all 1 sums"):
        found.acquire(prompt_of(2, 3, 4))
    found.arm(SumPlan([*prompt.parts(0, 9, 0)]))
    run(model, torch.ones(LAYERS, 9, WIDTH))
    found.disarm()
    assert found.exited(1, prompt)
    assert all(sums.any() for sums in found.sums)
    found.release(prompt)
    again = found.acquire(prompt_of(2, 3, 4))
    assert again.slot == prompt.slot
    assert not any(sums[:2].any() for sums in found.sums)
    # Logits of zeros are equal, so what was decided for the request before is gone, too.
    assert not found.exited(1, again)


def test_replays_add_what_their_step_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph was captured by a dummy step; padding may hold anything."""
    emulated_graphs.install(monkeypatch)
    emulated_graphs.PYTHON_OPERATORS["vllm_prune::sum_hidden"] = gates._sum_hidden
    model, found = made()
    batch, graph = torch.zeros(LAYERS, TOKENS, WIDTH), emulated_graphs.Graph()
    with emulated_graphs.graph(graph):
        run(model, batch)
    memory = [one.data_ptr() for one in (found.target, *found.sums)]
    source = torch.Generator().manual_seed(3)
    prompts = [found.acquire(prompt_of(1, 1, 9)), found.acquire(prompt_of(1, 1, 6))]
    expected = torch.zeros(LAYERS - 1, 4, WIDTH)
    for parts in ([(0, 0, 5), (2, 6, 9)], [(2, 0, 2), (1, 3, 4)], [], [(0, 2, 5), (3, 9, 10)]):
        batch.copy_(torch.randn(batch.shape, generator=source))
        batch[:, 14:] = float("nan")
        for number, start, end in parts:
            expected[:, number] += batch[1:, start:end].sum(dim=1)
        found.arm(SumPlan(parts))
        graph.replay()
        found.disarm()
        graph.replay()
    for sums, wanted in zip(found.sums, expected, strict=True):
        torch.testing.assert_close(sums[:4], wanted)
    assert [one.data_ptr() for one in (found.target, *found.sums)] == memory
    assert sorted(prompt.slot for prompt in prompts) == [0, 1]


def test_a_graph_captured_without_the_sums_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what is decided in Python does not reach a replay."""
    emulated_graphs.install(monkeypatch)
    monkeypatch.setattr(gates.cuda_graphs, "capturing", lambda: False)
    emulated_graphs.PYTHON_OPERATORS["vllm_prune::sum_hidden"] = gates._sum_hidden
    model, found = made()
    graph = emulated_graphs.Graph()
    with emulated_graphs.graph(graph):
        run(model, torch.ones(LAYERS, TOKENS, WIDTH))
    found.arm(SumPlan([(0, 0, 4)]))
    graph.replay()
    assert not any(sums.any() for sums in found.sums)


def test_a_model_that_gates_were_not_trained_for_is_not_hooked() -> None:
    network = Network(gate_weights(LAYERS, WIDTH, 4), LANGUAGE)
    decoders = [nn.ModuleDict({"input_layernorm": Norm()}) for _ in range(LAYERS)]
    whole = model_of(decoders)
    # Attention in every other layer only.
    assert not VisualGates(whole, NAMES[::2], network, 1, TOKENS, CPU, key()).hooked
    decoders[2] = nn.ModuleDict({"ln_1": Norm()})
    assert not VisualGates(model_of(decoders), NAMES, network, 1, TOKENS, CPU, key()).hooked
