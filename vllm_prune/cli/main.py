"""The `vllm-prune` command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .. import __version__

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
    from .serve import LaunchError, launch

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
    markdown: Annotated[bool, typer.Option(help="Print the tables of the documentation.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with option schemas.")] = False,
) -> None:
    """List the catalogue."""
    from ..catalogue import KV, VISUAL, entries
    from ..catalogue import markdown as as_markdown

    if as_json:
        typer.echo(json.dumps(entries(), indent=2))
    elif markdown:
        typer.echo(as_markdown(VISUAL) + "\n\n" + as_markdown(KV))
    else:
        table = Table("strategy", "for", "what it keeps", "needs", "source")
        for entry in entries():
            table.add_row(
                entry["name"], ", ".join(entry["modality"]), entry["summary"], ", ".join(entry["needs"]), entry["paper"]
            )
        Console().print(table)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _ratios(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(ratio) for ratio in _names(text))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 0.5,0.25") from None


@app.command("try")
def try_(
    image: Annotated[Path, typer.Argument(help="File of a picture.")],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    keep: Annotated[str, typer.Option(help="Ratios of visual tokens to keep, compared side by side.")] = "1,0.5,0.25",
    strategy: Annotated[str | None, typer.Option(help="Visual strategy; default: the server's.")] = None,
    url: Annotated[str, typer.Option(help="Running vllm-prune server.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Name of a served model; default: the first.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 64,
    out: Annotated[Path, typer.Option(help="Write the picture with its kept tokens to this file.")] = Path("kept.png"),
) -> None:
    """Ask one question about a picture under several budgets: answers, tokens, times, and what was kept."""
    from .try_budget import Options, TryError, try_budgets

    ratios = _ratios(keep)
    if not ratios or not all(0 < ratio <= 1 for ratio in ratios):
        raise typer.BadParameter(f"{keep!r}: give ratios above 0 and at most 1, such as 1,0.5,0.25")
    try:
        try_budgets(Options(image, question, ratios, strategy, url, model, tokens, out), Console())
    except TryError as error:
        typer.echo(f"vllm-prune: {error}", err=True)
        raise typer.Exit(2) from None


@app.command()
def sweep(
    data: Annotated[Path, typer.Argument(help="JSONL of requests with answers, or a folder with --format.")],
    url: Annotated[str, typer.Option(help="Running vllm-prune server.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Serve this model for the sweep instead of using --url.")] = None,
    strategies: Annotated[str | None, typer.Option(help="Visual strategies; default: all that fit the data.")] = None,
    keep: Annotated[str, typer.Option(help="Ratios of visual tokens to keep.")] = "0.5,0.25,0.1",
    kv: Annotated[str, typer.Option(help="KV strategies; default: none.")] = "",
    kv_keep: Annotated[str, typer.Option(help="Ratios of cached rows to keep.")] = "0.4,0.2,0.1",
    combine: Annotated[bool, typer.Option("--combine", help="Also ask every visual with every KV budget.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the results; finished cells in it are reused.")] = Path("sweep"),
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first so many samples.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 8,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask again what the folder has already.")] = False,
    format: Annotated[
        str, typer.Option(help="jsonl, screenspot_v2, screenspot_pro, android_control or videomme.")
    ] = "jsonl",
    coordinates: Annotated[str, typer.Option(help="What the model counts in: pixels, unit or thousand.")] = "pixels",
) -> None:
    """Measure accuracy against cost over strategies and budgets on your own requests."""
    from ..sweep.client import SweepError
    from ..sweep.command import Options
    from ..sweep.command import sweep as run
    from ..sweep.samples import DataError

    chosen = None if strategies is None else _names(strategies)
    options = Options(
        data, format, url, model, chosen, _ratios(keep), _names(kv), _ratios(kv_keep), combine, out, limit,
        concurrency, fresh, coordinates,
    )  # fmt: skip
    try:
        run(options)
    except (SweepError, DataError) as error:
        typer.echo(f"vllm-prune: {error}", err=True)
        raise typer.Exit(2) from None


@app.command()
def bench(
    url: Annotated[str, typer.Option(help="Running vllm-prune server.")] = "http://127.0.0.1:8000",
    data: Annotated[Path | None, typer.Option(help="JSONL as for sweep; default: generated screenshots.")] = None,
    mix: Annotated[
        str, typer.Option(help="Budgets in equal shares: off, 0.5, STRATEGY:0.5, kv:0.2, kv:STRATEGY:0.2, @PRESET.")
    ] = "off,0.5,0.25",
    requests: Annotated[int, typer.Option(min=1, help="Requests to send.")] = 60,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate per request.")] = 32,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Requests per second; default: all at once.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Most requests in flight.")] = 8,
    width: Annotated[int, typer.Option(help="Of generated screenshots, in pixels.")] = 1036,
    height: Annotated[int, typer.Option(help="Of generated screenshots, in pixels.")] = 672,
    seed: Annotated[int, typer.Option(help="Of screenshots, order and arrivals.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the result to this JSON file.")] = None,
) -> None:
    """Load a running server with mixed budgets; latency and cost per class of budget."""
    from ..bench.command import Options
    from ..bench.command import bench as run
    from ..bench.mix import MixError
    from ..bench.vllm_adapter import BenchError
    from ..sweep.client import SweepError
    from ..sweep.samples import DataError

    options = Options(url, data, mix, requests, tokens, rate, concurrency, (width, height), seed, out)
    try:
        run(options)
    except (BenchError, MixError, SweepError, DataError) as error:
        typer.echo(f"vllm-prune: {error}", err=True)
        raise typer.Exit(2) from None


@app.command("hash-key")
def hash_key() -> None:
    """Read an API key from standard input and print the form in which `tenants` takes it."""
    import sys

    from ..config.tenants import SHORTEST_KEY
    from ..config.tenants import hash_key as hashed

    key = sys.stdin.readline().rstrip("\r\n")
    if len(key) < SHORTEST_KEY or key != key.strip():
        typer.echo(
            f"vllm-prune: an API key has {SHORTEST_KEY} characters or more and no space around it, as its hash is "
            f"not salted; make one with: openssl rand -hex 24",
            err=True,
        )
        raise typer.Exit(2)
    typer.echo(hashed(key))


def main() -> None:
    """Entry point."""
    app(prog_name="vllm-prune")


if __name__ == "__main__":
    main()
