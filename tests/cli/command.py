"""The installed command, run as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMAND = str(Path(sys.executable).parent / "vllm-prune")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("VLLM_P")}
    return subprocess.run(
        [COMMAND, *arguments], capture_output=True, text=True, timeout=240, env={**clean, **environment}
    )
