"""For benchmarks on a CPU only: vLLM's own pruning of videos runs there.

vLLM's GPU runner notes when it has loaded the model that videos are pruned, and then moves the positions that the
model appended to its embeddings. Its CPU runner loads models in a method of its own, which does not; the first pruned
video then ends the engine. Nothing of vllm-prune uses this class.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker


class PruningCPUWorker(CPUWorker):
    """vLLM's CPU worker, whose runner knows that the model prunes."""

    def load_model(self, **options: Any) -> None:
        """Load the model, then set what the GPU runner sets."""
        super().load_model(**options)
        self.model_runner.is_multimodal_pruning_enabled = True
