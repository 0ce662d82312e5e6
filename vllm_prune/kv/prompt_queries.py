"""Sums over all queries of a prompt before rotary embedding: their mean and covariance, without keeping them.

For Expected Attention (arXiv 2510.00636, section 3). Prompts may come in chunks, and one after another in a step. A
request holds a slot of sums while it runs. Sums are of float32, whose rounding follows the chunks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..vllm_compat import cuda_graphs
from .strategies.base import Moments
from .token_sums import TokenSums

PART = 2048
"""Most tokens whose queries are held in float32 at once."""

_LIBRARY = torch.library.Library("vllm_prune", "FRAGMENT")
_STORES: dict[int, PromptQueries] = {}


def _sum_queries(output: Tensor, anchor: Tensor, store: int, layer: int) -> None:
    sums = _STORES.get(store)
    if sums is not None and (sums.armed or cuda_graphs.capturing()):
        sums.add(output, layer)


def _sum_queries_fake(output: Tensor, anchor: Tensor, store: int, layer: int) -> None:
    return None


def _define() -> None:
    from vllm.utils.torch_utils import direct_register_custom_op

    # `anchor` is declared as written to, or the compiler would drop a call without results.
    direct_register_custom_op(
        "sum_queries", _sum_queries, mutates_args=["anchor"], fake_impl=_sum_queries_fake, target_lib=_LIBRARY
    )


class PromptQueries(TokenSums):
    """Sums of queries and of their products, per layer and slot.

    Args:
        model: the loaded model; the modules that hand queries to rotary embedding get a hook.
        layers: vLLM's attention layers in order.
        capacity: number of slots; all memory is allocated here.
        tokens: most tokens of a step, padding included.
        device: where the sums live.
        key: by which compiled code finds them; see `CompactingWorker.init_device`.

    Attributes:
        hooked: whether every layer has a module whose output holds the queries.
        free: slots that no request holds.
        counts: float32 [slots], queries added.
        sums: per layer float32 [slots, H * G, D].
        products: per layer float32 [slots, H * G, D, D].
    """

    def __init__(
        self, model: nn.Module, layers: list[Any], capacity: int, tokens: int, device: torch.device, key: int
    ) -> None:
        if not hasattr(torch.ops.vllm_prune, "sum_queries"):
            _define()
        super().__init__(tokens, capacity, device)
        self.capacity, self.key = capacity, key
        self.free = list(range(capacity))
        self.shapes = [(layer.num_heads, layer.head_size) for layer in layers]
        self.counts = torch.zeros(capacity, device=device)
        self.sums = [torch.zeros(capacity, heads, size, device=device) for heads, size in self.shapes]
        self.products = [torch.zeros(capacity, heads, size, size, device=device) for heads, size in self.shapes]
        self.anchor = torch.zeros(1, device=device)
        modules = dict(model.named_modules())
        sources = [_source(modules, layer) for layer in layers]
        self.hooked = all(source is not None for source in sources)
        self.shifts: list[Tensor | None] = [None] * len(layers)
        for index, source in enumerate(sources):
            if self.hooked and source is not None:
                self.shifts[index] = self._shift(index, source)
                source.register_forward_hook(self._hook(index))
        if self.hooked:
            _STORES[self.key] = self

    def _shift(self, index: int, source: nn.Module) -> Tensor | None:
        """The projection's bias, which sums go without: squares of large biases would drown what varies."""
        bias, (heads, size) = getattr(source, "bias", None), self.shapes[index]
        return None if bias is None else bias[: heads * size].detach().view(heads, size).float()

    def _hook(self, index: int) -> Any:
        key, anchor = self.key, self.anchor

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            torch.ops.vllm_prune.sum_queries(output, anchor, key, index)

        return after

    def acquire(self) -> int:
        """An empty slot for a request.

        Raises:
            RuntimeError: none is free. The scheduler lets no request run that does not get one.
        """
        if not self.free:
            raise RuntimeError(f"all {self.capacity} sums of prompt queries are held")
        slot = self.free.pop(0)
        for tensor in (self.counts, *self.sums, *self.products):
            tensor[slot].zero_()
        return slot

    def release(self, slot: int) -> None:
        """Take back the slot of a request that has ended."""
        self.free.append(slot)

    def add(self, output: Tensor, layer: int) -> None:
        """Add the step's queries of a layer.

        Args:
            output: [n, ...] of the hooked module, the queries of all heads first in each row.
            layer: index of the layer.
        """
        heads, size = self.shapes[layer]
        queries = output.reshape(len(output), -1)[:, : heads * size].view(-1, heads, size)
        if cuda_graphs.capturing():
            # Which tokens a replay adds is known to the device only, so every slot looks at all of them.
            member = self.target[: len(queries)] == torch.arange(self.capacity, device=self.device)[:, None]
            for slot in range(self.capacity):
                inside = member[slot, :, None, None]
                self._add(layer, slot, queries, inside)
            if layer == 0:
                self.counts += member.sum(dim=1)
            return
        for slot, start, end in self.plan.parts:
            for first in range(start, end, PART):
                self._add(layer, slot, queries[first : min(end, first + PART)], None)
            if layer == 0:
                self.counts[slot] += end - start

    def _add(self, layer: int, slot: int, queries: Tensor, inside: Tensor | None) -> None:
        rows, shift = queries.float(), self.shifts[layer]
        rows = rows if shift is None else rows - shift
        # Padding may hold anything, also what is no number.
        rows = rows if inside is None else torch.where(inside, rows, 0.0)
        per_head = rows.transpose(0, 1)
        self.products[layer][slot].baddbmm_(per_head.transpose(1, 2), per_head)
        self.sums[layer][slot].add_(rows.sum(dim=0))

    def at(self, layer: int, slot: int) -> Moments:
        """Mean and covariance of what a slot holds; zeros where nothing was added."""
        count, shift = self.counts[slot].clamp(min=1), self.shifts[layer]
        mean = self.sums[layer][slot] / count
        covariance = self.products[layer][slot] / count - mean[:, :, None] * mean[:, None]
        return Moments(mean if shift is None else mean + shift, covariance)


def _source(modules: dict[str, nn.Module], layer: Any) -> nn.Module | None:
    """The module whose output goes to rotary embedding: the queries' norm, else the projection that they come from."""
    from vllm.model_executor.layers.linear import QKVParallelLinear

    parent = layer.layer_name.rpartition(".")[0]
    norm, projection = modules.get(f"{parent}.q_norm"), modules.get(f"{parent}.qkv_proj")
    if norm is not None:
        return norm
    return projection if isinstance(projection, QKVParallelLinear) else None
