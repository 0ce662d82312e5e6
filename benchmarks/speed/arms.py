"""What is compared: stock vLLM, its own pruning, and ours at many budgets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_prune.config.load import PruneConfig

from .workloads import Workload

STOCK, EVS, VIDCOM2, OURS = "stock", "evs", "vidcom2", "ours"
"""Names of servers. vLLM sets its own pruning for a whole server, so each of these needs one."""
OFF: dict[str, Any] = {"visual": None, "kv": None}
CPU_WORKER = "benchmarks.speed.evs_worker.PruningCPUWorker"
"""The worker with which a server on a CPU prunes videos; see there."""
PIXELS = "gui_dedup"
"""The strategy that chooses by pixels, before the tower."""
INSIDE = "divprune"
"""The strategy that chooses inside the tower; the default one of images cannot."""


@dataclass(frozen=True)
class Arm:
    """One way to ask.

    Attributes:
        name: as results name it.
        server: which one is asked.
        pruning: the request field, None to leave it out.
        keep: share of the visual tokens that is kept, 1 for all.
        place: where they are chosen: "", "behind" the tower, in the "tower", by "pixels".
        needs: kinds of media of which a request must have one; none for any request.
    """

    name: str
    server: str
    pruning: dict[str, Any] | None = None
    keep: float = 1.0
    place: str = ""
    needs: frozenset[str] = frozenset()

    def takes(self, workload: Workload) -> bool:
        """Whether the arm means anything for a workload."""
        return not self.needs or bool(self.needs & workload.media)


def stock() -> Arm:
    """What all ratios are relative to."""
    return Arm("stock", STOCK)


def off() -> Arm:
    """Ours without a budget."""
    return Arm("off", OURS, OFF)


def peer(server: str, keep: float) -> Arm:
    """VLLM's own pruning of videos."""
    return Arm(f"{server} {keep:.0%}", server, None, keep, "behind", frozenset({"video"}))


def visual(keep: float, place: str, strategy: str | None = None) -> Arm:
    """Ours with a visual budget.

    Args:
        keep: share.
        place: "behind" the tower, in the "tower", or by "pixels" before it.
        strategy: without it each modality's default behind the tower, `INSIDE` in it, and `PIXELS` before it.
    """
    budget: dict[str, Any] = {"keep": keep, "options": {}}
    if place == "behind" and strategy is None:
        # The default of videos would choose inside the tower.
        budget["video"] = {"options": {"where": "embed"}}
    else:
        budget["strategy"] = strategy or {"tower": INSIDE, "pixels": PIXELS}[place]
    if place == "tower":
        budget["options"] = {"where": "tower"}
    field = {"visual": budget, "kv": None}
    text = {"behind": "behind the tower", "tower": "in the tower", "pixels": "by pixels"}[place]
    return Arm(f"keep {keep:.0%} {text}", OURS, field, keep, place, frozenset({"image", "video"}))


def defaults() -> str:
    """Which strategies the pruned arms of screenshots have by default, in words."""
    behind = PruneConfig().visual_choices()["image"][0].strategy
    return f"{behind} behind the tower, {INSIDE} inside it"


def kv(keep: float, strategy: str | None = None) -> Arm:
    """Ours with a KV budget."""
    named = {} if strategy is None else {"strategy": strategy}
    return Arm(f"kv {keep:.0%}", OURS, {"visual": None, "kv": {"keep": keep, **named}})


def matrix(servers: Sequence[str], keeps: Sequence[float], kv_keeps: Sequence[float]) -> Iterator[Arm]:
    """Every arm that these servers can answer, stock first."""
    yield stock()
    yield from (peer(name, 0.25) for name in (EVS, VIDCOM2) if name in servers)
    yield off()
    yield from (visual(keep, place) for place in ("behind", "tower", "pixels") for keep in keeps)
    yield from (kv(keep) for keep in kv_keeps)


def pruning_arguments(server: str, keep: float, cuda: bool) -> list[str]:
    """Arguments of `vllm serve` that make a server one of stock vLLM's pruning ones; none for the others."""
    if server not in (EVS, VIDCOM2):
        return []
    worker = [] if cuda else ["--worker-cls", CPU_WORKER]
    return ["--video-pruning-rate", f"{1 - keep:g}", "--video-pruning-method", server, *worker]
