"""Section `kv`: what KV eviction may take of the workers."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from .section import Section


def _ascending(starts: tuple[int, ...]) -> tuple[int, ...]:
    if any(later <= earlier for earlier, later in pairwise(starts)):
        raise ValueError("name the layers in ascending order, each once")
    return starts


class Kv(Section):
    """What KV eviction may take of the workers.

    Attributes:
        observed_requests: requests whose last queries the workers keep at once, for the strategies that look at them
            (1.6 MB each at the default window and the shapes of a 7B model); absent, all that can run at once.
        over_observed: what becomes of one more: "wait" keeps it in the engine's queue until another has ended,
            "refuse" answers it with 503. "refuse" counts in each API process.
        prompt_queries: requests whose prompt's queries the workers sum up at once, for `expected_attention` with
            `queries: prompt`; 0 refuses those, and one more than this waits. Each takes 51 MB at the shapes of a 7B
            model, and with any the captured CUDA graphs do that sum in every step that observes anything.
        layer_groups: numbers of the layers, counted from 0, at which another group of layers begins, for the strategies
            that keep fewer rows in later layers: `[14]` divides the 28 layers of a 7B model in two. Each group has
            block tables of its own; absent, all layers share one.
        plain_graphs: whether full CUDA graphs of decode steps are captured twice, with and without the kernels that
            observe, so that steps without a KV budget replay vLLM's kernels and no other. On by default, as it costs
            once, at the start: the capture of these graphs takes twice as long, and each takes memory of the driver
            (vLLM reckons with at least 1 MiB) that its profiling counts; activations share one pool.
    """

    observed_requests: Annotated[int, Field(strict=True, ge=1)] | None = None
    over_observed: Literal["wait", "refuse"] = "wait"
    prompt_queries: Annotated[int, Field(strict=True, ge=0, le=64)] = 0
    layer_groups: Annotated[tuple[Annotated[int, Field(strict=True, ge=1)], ...], AfterValidator(_ascending)] = ()
    plain_graphs: Annotated[bool, Field(strict=True)] = True
