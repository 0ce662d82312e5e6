"""What the workers of the running server have said about themselves, kept beside the configuration that they run.

The server owns the object. It hangs on vLLM's configuration, which every request's path holds, so that no process
global is needed and two engines in one process do not meet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..budget.errors import Finding, kv_finding

_ATTRIBUTE = "vllm_prune_workers"


@dataclass(frozen=True)
class KvWorkers:
    """KV eviction as the workers see it, and the positions of what is pruned.

    Attributes:
        findings: why they cannot compact; empty when they can.
        offers: signals that strategies can ask for, on every worker.
        one_position: why merged visual tokens have one position each; None where they can have several.
    """

    findings: tuple[Finding, ...]
    offers: frozenset[str]
    one_position: str | None = None

    @classmethod
    def of(cls, reports: Sequence[Mapping[str, Any]]) -> KvWorkers:
        """From what `WorkerInspection.vllm_prune_inspect` answers on every worker; no reports mean no eviction."""
        if not reports:
            unasked = "it cannot be asked; start with vllm-prune serve"
            return cls((kv_finding("worker", unasked),), frozenset(), f"a worker: {unasked}")
        findings = [Finding.of(wire) for report in reports for wire in report["kv"]["findings"]]
        offers = [frozenset(report["kv"]["offers"]) for report in reports]
        one_position: str | None = next((text for one in reports if (text := one.get("one_position"))), None)
        return cls(tuple(dict.fromkeys(findings)), frozenset.intersection(*offers), one_position)


def remember_workers(vllm_config: Any, workers: KvWorkers) -> None:
    """Let `workers_of` answer for this configuration."""
    setattr(vllm_config, _ATTRIBUTE, workers)


def workers_of(vllm_config: Any) -> KvWorkers | None:
    """What the workers have said; None where nobody asks them, as under plain `vllm serve`.

    There a worker that could not serve every strategy has refused to start.
    """
    workers: KvWorkers | None = getattr(vllm_config, _ATTRIBUTE, None)
    return workers
