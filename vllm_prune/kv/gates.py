"""What DyVTE's gates look at (arXiv 2411.19628), summed while a prompt is computed, and what they say.

A gate stands behind each layer of the language model. It reads the mean hidden state of the text behind the last visual
token, without the prompt's last token, and the hidden state of that one, both behind its layer. Its second logit stands
for leaving visual tokens out of the layers that follow, so the gate behind the last layer decides nothing and is not
asked. Sums are of float32, whose rounding follows the chunks in which a prompt is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from ..visual.strategies._trained import Network
from ..vllm_compat import cuda_graphs
from .saliency import input_norm
from .strategies.base import TEXT
from .token_sums import TokenSums

_LIBRARY = torch.library.Library("vllm_prune", "FRAGMENT")
_STORES: WeakValueDictionary[int, VisualGates] = WeakValueDictionary()


def _sum_hidden(hidden: Tensor, anchor: Tensor, store: int, gate: int) -> None:
    gates = _STORES.get(store)
    if gates is not None and (gates.armed or cuda_graphs.capturing()):
        gates.add(hidden, gate)


def _sum_hidden_fake(hidden: Tensor, anchor: Tensor, store: int, gate: int) -> None:
    return None


def _define() -> None:
    from vllm.utils.torch_utils import direct_register_custom_op

    # `anchor` is declared as written to, or the compiler would drop a call without results.
    direct_register_custom_op(
        "sum_hidden", _sum_hidden, mutates_args=["anchor"], fake_impl=_sum_hidden_fake, target_lib=_LIBRARY
    )


@dataclass(frozen=True)
class GatedPrompt:
    """Which tokens of a prompt the gates read.

    Attributes:
        slot: of the sums.
        text: positions whose mean they read; the prompt's last token follows them. Empty where no text stands between
            the last visual token and that one, and where nothing is visual: then no gate is asked.
    """

    slot: int
    text: range

    @classmethod
    def of(cls, slot: int, media: Tensor) -> GatedPrompt:
        """From int64 [prompt] on the CPU, the media item of each token or `TEXT`."""
        visual, last = (media != TEXT).nonzero(), len(media) - 1
        first = int(visual[-1]) + 1 if len(visual) else last
        return cls(slot, range(min(first, last), last))

    def parts(self, before: int, count: int, start: int) -> Iterator[tuple[int, int, int]]:
        """What a step adds to which sum, see `SumPlan`.

        Args:
            before: tokens of the request that are computed when the step starts.
            count: tokens of it that the step computes.
            start: the first of these in the batch.
        """
        if not self.text:
            return
        last = range(self.text.stop, self.text.stop + 1)
        for number, positions in enumerate((self.text, last), 2 * self.slot):
            first, end = max(before, positions.start), min(before + count, positions.stop)
            if first < end:
                yield number, start + first - before, start + end - before


class VisualGates(TokenSums):
    """The gates, and per gate the sums of hidden states that they read.

    Args:
        model: the loaded model; the input norms of its decoder layers but the first get a hook.
        names: names of the attention layers in order, as vLLM's forward context knows them.
        network: the gates.
        requests: most requests at once; all memory is allocated here.
        tokens: most tokens of a step, padding included.
        device: where the sums live.
        key: by which compiled code finds them; see `CompactingWorker.init_device`.

    Attributes:
        hooked: whether these are all layers of the language model, and each has an input norm.
        free: slots that no request holds.
        sums: per gate float32 [2 * requests + 1, D]: for each slot that over the text, then the last token's hidden
            state. What is behind the slots is scratch.
    """

    def __init__(
        self, model: nn.Module, names: list[str], network: Network, requests: int, tokens: int, device: torch.device,
        key: int,
    ) -> None:  # fmt: skip
        if not hasattr(torch.ops.vllm_prune, "sum_hidden"):
            _define()
        super().__init__(tokens, 2 * requests, device)
        self.network, self.key, self.free = network.to(device), key, list(range(requests))
        self.anchor = torch.zeros(1, device=device)
        modules = dict(model.named_modules())
        # What leaves a layer enters the next one's input norm.
        norms = [modules.get(input_norm(name)) for name in names[1:]]
        self.hooked = len(names) == network.language.layers and all(norm is not None for norm in norms)
        self.sums = [torch.zeros(2 * requests + 1, network.language.width, device=device) for _ in norms]
        self._decided: dict[int, list[Tensor]] = {}
        for gate, norm in enumerate(norms):
            if self.hooked and norm is not None:
                norm.register_forward_hook(self._hook(gate))
        if self.hooked:
            _STORES[self.key] = self

    def _hook(self, gate: int) -> Any:
        key, anchor = self.key, self.anchor

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # Fused norms return (normed, hidden state).
            hidden = output[1] if isinstance(output, tuple) else args[0]
            torch.ops.vllm_prune.sum_hidden(hidden, anchor, key, gate)

        return after

    def acquire(self, media: Tensor) -> GatedPrompt:
        """Empty sums for a request.

        Args:
            media: int64 [prompt] on the CPU, media item of each token, `TEXT` for text.

        Raises:
            RuntimeError: none are free. The scheduler lets no request run that does not get a window, and there are as
                many sums as windows.
        """
        if not self.free:
            raise RuntimeError(f"all {self.nowhere // 2} sums of hidden states are held")
        slot = self.free.pop(0)
        for sums in self.sums:
            sums[2 * slot : 2 * slot + 2].zero_()
        self._decided[slot] = [torch.zeros((), dtype=torch.bool, device=self.device)]
        return GatedPrompt.of(slot, media)

    def release(self, prompt: GatedPrompt) -> None:
        """Take back the sums of a request that has ended."""
        self.free.append(prompt.slot)
        del self._decided[prompt.slot]

    def add(self, hidden: Tensor, gate: int) -> None:
        """Add the step's hidden states behind a gate's layer, [n, D]."""
        sums = self.sums[gate]
        if cuda_graphs.capturing():
            # Which tokens a replay adds is known to the device only. Padding may hold anything, also what is no number.
            target = self.target[: len(hidden)]
            rows = torch.where((target < self.nowhere)[:, None], hidden.float(), 0.0)
            member = target == torch.arange(len(sums), device=self.device)[:, None]
            sums.addmm_(member.float(), rows)
            return
        for number, start, end in self.plan.parts:
            sums[number].add_(hidden[start:end].sum(dim=0, dtype=torch.float32))

    def exited(self, layer: int, prompt: GatedPrompt) -> Tensor:
        """Bool [], whether a gate in front of a layer lets visual tokens be left out from there on."""
        decided = self._decided[prompt.slot]
        while len(decided) <= layer:
            decided.append(decided[-1] | self._says_exit(len(decided) - 1, prompt))
        return decided[layer]

    def _says_exit(self, gate: int, prompt: GatedPrompt) -> Tensor:
        if not prompt.text:
            return self._decided[prompt.slot][0]
        text, last = self.sums[gate][2 * prompt.slot : 2 * prompt.slot + 2]
        stay, leave = self.logits(gate, torch.cat([text / len(prompt.text), last]))
        return leave > stay

    def logits(self, gate: int, features: Tensor) -> Tensor:
        """float32 [2], for keeping visual tokens and for leaving them out, from float32 [2 D] features."""
        name = f"visual_gates_router.{gate}"
        return self.network.map(gelu(self.network.map(features, f"{name}.w1")), f"{name}.w2")
