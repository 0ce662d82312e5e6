"""The `vllm-prune` command."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from . import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Per-request visual-token budgets for vLLM.",
    pretty_exceptions_enable=False,
)
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=PASS_ON)
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Model to serve, a path or a hub name.")],
    config: Annotated[str | None, typer.Option(help="Operator's configuration (defaults, limits, presets).")] = None,
    vllm_config: Annotated[str | None, typer.Option(help="vLLM's own --config file.")] = None,
) -> None:
    """Serve MODEL with vLLM's OpenAI server; every other argument is passed on to `vllm serve`."""
    from .launch import LaunchError, launch

    extra = list(context.args)
    if vllm_config is not None:
        extra += ["--config", vllm_config]
    try:
        launch(model, extra, config)
    except LaunchError as error:
        typer.echo(f"vllm-prune: {error}", err=True)
        raise typer.Exit(2) from None


@app.command()
def doctor() -> None:
    """Say what is registered on which vLLM, and what is refused; exit 1 when something is unsupported."""
    from .doctor import examine

    checks = examine()
    table = Table("check", "state", "detail", title=f"vllm-prune {__version__}")
    for check in checks:
        table.add_row(check.name, "ok" if check.good else "PROBLEM", check.detail)
    Console(width=160).print(table)
    raise typer.Exit(0 if all(check.good for check in checks) else 1)


@app.command()
def strategies(
    markdown: Annotated[bool, typer.Option(help="Print the table of the README.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with option schemas.")] = False,
) -> None:
    """List the catalogue."""
    from .catalogue import entries
    from .catalogue import markdown as as_markdown

    if as_json:
        typer.echo(json.dumps(entries(), indent=2))
    elif markdown:
        typer.echo(as_markdown() + "\n\n" + as_markdown("kv"))
    else:
        table = Table("strategy", "for", "what it keeps", "needs", "source")
        for entry in entries():
            table.add_row(
                entry["name"], ", ".join(entry["modality"]), entry["summary"], ", ".join(entry["needs"]), entry["paper"]
            )
        Console().print(table)


def main() -> None:
    """Entry point."""
    app(prog_name="vllm-prune")


if __name__ == "__main__":
    main()
