"""What `vllm-prune serve` makes of the command line that an image, a compose file or a chart gives it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from unittest import mock

from vllm_prune.cli import serve
from vllm_prune.cli.main import app

from .conftest import DEPLOY


@dataclass(frozen=True)
class Served:
    """What the launcher is called with."""

    model: str
    config: str | None
    rest: list[str]


def parsed(arguments: Sequence[str]) -> Served:
    """Run `vllm-prune` with arguments, up to the launcher."""
    with mock.patch.object(serve, "launch") as launch:
        app([*arguments], standalone_mode=False)
    (model, rest, config), _ = launch.call_args
    return Served(model, config, list(rest))


def entrypoint(dockerfile: str) -> list[str]:
    """The image's ENTRYPOINT, without the name of the program."""
    (words,) = re.findall(r"^ENTRYPOINT (\[.*\])$", (DEPLOY / dockerfile).read_text(), re.MULTILINE)
    program, *arguments = json.loads(words)
    assert program == "vllm-prune"
    return list(arguments)


def served(dockerfile: str, command: Sequence[str]) -> Served:
    """What an image's container serves that is started with a command."""
    return parsed([*entrypoint(dockerfile), *command])
