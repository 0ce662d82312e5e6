"""Ctrl-C in a terminal, which sends SIGINT to every process of the server, while one of them is to drain the others."""

from __future__ import annotations

import os
import signal
import threading

LAUNCHED = "VLLM_PRUNE_LAUNCHED"
"""Marks a server that `vllm-prune serve` started."""


def ignore_when_launched() -> None:
    """Ignore SIGINT in this process of a server that `vllm-prune serve` started.

    To be called in the engine's process and in each worker's, once vLLM has installed its own handlers there: with
    those, Ctrl-C would end the workers under the requests that the API process lets finish. SIGTERM still ends them.
    """
    if LAUNCHED in os.environ and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
