"""Commands of the pages that serve a model of the hub: the name reaches `vllm-prune serve` as it is written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from .command_lines import entrypoint, parsed
from .conftest import DEPLOY, ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")), *sorted(DEPLOY.glob("**/*.md"))]
COMMAND = re.compile(r"(?:make serve|vllm-prune serve|docker run)\b[^`\n|#]*")
HUB_NAME = re.compile(r"(?:(?<=MODEL=)|(?<= ))[A-Z]\w*/[\w.-]+")
COMMANDS = sorted(
    {
        (page.relative_to(ROOT).as_posix(), command.strip())
        for page in PAGES
        for command in COMMAND.findall(page.read_text().replace("\\\n", " "))
        if HUB_NAME.search(command)
    }
)


def arguments(command: str) -> list[str]:
    """What a command passes to `vllm-prune`."""
    words = shlex.split(command)
    if words[0] == "vllm-prune":
        return words[1:]
    if words[0] == "docker":
        (image,) = (index for index, word in enumerate(words) if word.startswith("vllm-prune:"))
        return [*entrypoint(f"Dockerfile.{words[image].partition(':')[2]}"), *words[image + 1 :]]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    shown = subprocess.run(
        [words[0], "-n", *words[1:]], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    words = shlex.split(shown.stdout.splitlines()[-1])
    program = next(index for index, word in enumerate(words) if Path(word).name == "vllm-prune")
    return words[program + 1 :]


def test_the_pages_have_such_a_command() -> None:
    assert COMMANDS


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_the_name_arrives_unchanged(page: str, command: str) -> None:
    found = HUB_NAME.search(command)
    assert found is not None
    assert parsed(arguments(command)).model == found[0]


def test_the_forms_that_a_page_may_use() -> None:
    assert parsed(arguments("vllm-prune serve Org/Model --max-model-len 9")).model == "Org/Model"
    assert parsed(arguments("docker run --gpus all vllm-prune:cuda Org/Model --host 0.0.0.0")).model == "Org/Model"
    made = parsed(arguments('make serve MODEL=Org/Model PORT=9000 ARGS="--max-model-len 32768 --config a.yaml"'))
    assert (made.model, made.config) == ("Org/Model", "a.yaml")
    assert made.rest == ["--host", "127.0.0.1", "--port", "9000", "--max-model-len", "32768"]
