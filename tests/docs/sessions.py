"""Running a page's examples: one session per language, in which later blocks use names of earlier ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .pages import ROOT, URL, Example

SECONDS = 240
MARK = "---- next block ----"
COMMANDS_FOLDER = ".venv/bin/"
"""Where `make` puts the environment, in the text; the tests may run in another one."""
COMMANDS = {"python": [sys.executable, "-c"], "bash": ["bash", "-euo", "pipefail", "-c"]}
SEPARATORS = {"python": f"\nprint({MARK!r})\n", "bash": f"\necho; echo '{MARK}'\n"}


def outputs(blocks: Sequence[Example], url: str = URL) -> list[tuple[Example, str]]:
    """Run blocks of one language in one process, in the root of the repository; what each has printed.

    Args:
        blocks: the examples, in order.
        url: address of the server that stands for the one in the text.

    Raises:
        AssertionError: the session ended with an error.
    """
    language = blocks[0].language
    script = SEPARATORS[language].join(block.text for block in blocks).replace(URL, url)
    script = script.replace(COMMANDS_FOLDER, f"{Path(sys.executable).parent}/")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [*COMMANDS[language], script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, f"{blocks[0].place}: {done.stdout}\n{done.stderr}"
    return list(zip(blocks, done.stdout.split(MARK), strict=True))
