"""vLLM's `serve` subcommand, run in this process."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .signatures import holder, load

RUST_FRONT_END = "VLLM_USE_RUST_FRONTEND"
"""vLLM's variable that puts a server written in Rust, which loads no plugins, before the engine."""


def uses_rust_front_end() -> bool:
    """Whether `vllm serve` would start its Rust front end here."""
    from vllm import envs

    return bool(envs.VLLM_USE_RUST_FRONTEND)


class OtherFrontEnd(RuntimeError):
    """vLLM is to start a front end that runs none of our code."""


def refuse_rust_front_end() -> None:
    """Raise `OtherFrontEnd` where vLLM would start its Rust front end, for `vllm-prune serve` and `vllm serve` alike.

    It answers requests without any Python, so that it would take a budget and ignore it.
    """
    if uses_rust_front_end():
        raise OtherFrontEnd(
            f"{RUST_FRONT_END} is set: vLLM's Rust front end would ignore budgets. Unset it, or to serve without "
            "budgets set VLLM_PLUGINS to a list without vllm_prune."
        )


def allowed_plugins(environ_value: str | None) -> str:
    """Value for `VLLM_PLUGINS` that loads what vLLM would load anyway, and our endpoint plugin.

    Endpoint plugins load only when named, and naming one hides all others of every group.
    """
    from importlib.metadata import entry_points

    if environ_value is not None:
        listed = [name for name in environ_value.split(",") if name]
        return ",".join(dict.fromkeys([*listed, "vllm_prune"]))
    groups = ("general", "platform", "io_processor", "stat_logger")
    installed = {entry.name for group in groups for entry in entry_points(group=f"vllm.{group}_plugins")}
    return ",".join(sorted(installed | {"vllm_prune"}))


def run_vllm_serve(arguments: Sequence[str]) -> None:
    """Run vLLM's `serve` subcommand in this process until it has shut down.

    vLLM's own `main` asks for the metadata of a distribution called `vllm`, which the CPU build is not.
    """
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    load("cli_env_setup")()
    # The parser expands a --config file only for a command line that starts with "serve".
    sys.argv = ["vllm", "serve", *arguments]
    parser = FlexibleArgumentParser(description="vllm-prune serve")
    command = holder("ServeSubcommand.cmd")()
    command.subparser_init(parser.add_subparsers(required=True, dest="subparser"))
    parsed = parser.parse_args()
    load("configure_logging_from_args")(parsed)
    command.validate(parsed)
    command.cmd(parsed)
