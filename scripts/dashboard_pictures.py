#!/usr/bin/env python3
"""Record a real run for the dashboards of deploy/grafana, and draw their panels for the documentation.

    python scripts/dashboard_pictures.py record     # three minutes: a server under load, scraped by a real Prometheus
    python scripts/dashboard_pictures.py draw       # docs/pictures/dashboard-*.png from what was recorded

Grafana comes in no package that this project takes, so the panels are drawn here: the expressions, titles, places,
units and legends are those of the dashboards' JSON, Prometheus evaluates them, and only the drawing is ours.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from dashboard_load import CONFIG, PHASES, drive  # noqa: E402
from deploy_tools import TOOLS, debian_binary, fetch  # noqa: E402

from benchmarks.servers import Server, free_port  # noqa: E402

BOARDS = ROOT / "deploy" / "grafana" / "dashboards"
RECORDED = ROOT / "deploy" / "grafana" / "recorded_run.json"
PICTURES = ROOT / "docs" / "pictures"
STEP_SECONDS = 3
SETTLE_SECONDS = 6
"""After the load, for the last scrape and the rules."""
RATE_INTERVAL = "15s"
SCRAPING = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: vllm-prune
    static_configs: [{{targets: ["{target}"], labels: {{instance: "server:8000"}}}}]
"""
MOST_BYTES = 150_000
COLUMNS, ROW_INCHES, COLUMN_INCHES = 24, 0.31, 0.62


def expression(text: str) -> str:
    """A panel's expression with what Grafana would put in: all models, and an interval that a short run allows."""
    return text.replace("$__rate_interval", RATE_INTERVAL).replace("$model", ".*")


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Panels of a dashboard that show series."""
    return (panel for panel in board["panels"] if panel["type"] != "row")


@contextmanager
def prometheus(server: Server, folder: Path) -> Iterator[str]:
    """Address of a Prometheus that scrapes the server and evaluates the rules of deploy/."""
    fetch("prometheus", lambda work: debian_binary("prometheus", work))
    program = TOOLS / "prometheus"
    if not program.is_file():
        raise SystemExit("there is no Prometheus: install it, or let apt-get download the package prometheus")
    config, port = folder / "prometheus.yml", free_port()
    rules = ROOT / "deploy" / "prometheus" / "rules.yml"
    config.write_text(SCRAPING.format(rules=rules, target=f"127.0.0.1:{server.port}"))
    address = f"127.0.0.1:{port}"
    command = [program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
               f"--web.listen-address={address}", "--log.level=warn"]  # fmt: skip
    process = subprocess.Popen(command)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def query(address: str, text: str, start: float, end: float) -> list[dict[str, Any]]:
    """Series of an expression: labels, and one value or None per step."""
    wanted = {"query": expression(text), "start": start, "end": end, "step": STEP_SECONDS}
    answer = httpx.get(f"{address}/api/v1/query_range", params=wanted, timeout=60).json()
    if answer["status"] != "success":
        raise SystemExit(f"{text}: {answer['error']}")
    steps = int((end - start) // STEP_SECONDS) + 1
    series = []
    for one in answer["data"]["result"]:
        values: list[float | None] = [None] * steps
        for moment, value in one["values"]:
            number = float(value)
            values[round((moment - start) / STEP_SECONDS)] = float(f"{number:.4g}") if math.isfinite(number) else None
        labels = {name: value for name, value in one["metric"].items() if name != "__name__"}
        series.append({"labels": labels, "values": values})
    return series


def record() -> None:
    """Serve the demo model, load it, and write what Prometheus says about every panel."""
    import vllm

    model = ROOT / "benchmarks" / "demo_model" / "checkpoint"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "prune.yaml"
        config.write_text(CONFIG)
        with (
            Server(model, "prune", ["--max-num-seqs", "8"], config=config, log=folder / "log") as server,
            prometheus(server, folder) as address,
        ):
            time.sleep(SETTLE_SECONDS)
            start = math.floor(time.time())
            counts = drive(server.url, server.model_name)
            time.sleep(SETTLE_SECONDS)
            end = start + (math.floor(time.time()) - start) // STEP_SECONDS * STEP_SECONDS
            boards = {
                path.stem: {
                    str(panel["id"]): [
                        {"expr": target["expr"], "series": query(address, target["expr"], start, end)}
                        for target in panel["targets"]
                    ]
                    for panel in panels(json.loads(path.read_text()))
                }
                for path in sorted(BOARDS.glob("*.json"))
            }
    run = {
        "vllm": vllm.__version__, "seconds": end - start, "step_seconds": STEP_SECONDS, "rate_interval": RATE_INTERVAL,
        "phases": [{"name": phase.name, "seconds": phase.seconds} for phase in PHASES], "answers": counts,
    }  # fmt: skip
    RECORDED.write_text(json.dumps({"run": run, "dashboards": boards}) + "\n")
    print(f"{RECORDED.relative_to(ROOT)}: {RECORDED.stat().st_size // 1000} kB, {counts}")


def legend(template: str, labels: dict[str, str]) -> str:
    """A legend's text; what Grafana writes `{{label}}` is that label's value."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), template)


def in_unit(value: float, unit: str) -> str:
    """A value on an axis."""
    if unit == "percentunit":
        return f"{value * 100:.3g}%"
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 or value == 0 else f"{value * 1000:.3g} ms"
    text = f"{value / 1000:.3g}k" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{text} req/s" if unit == "reqps" else text


def draw() -> None:
    """Draw every dashboard."""
    recorded = json.loads(RECORDED.read_text())
    PICTURES.mkdir(parents=True, exist_ok=True)
    for path in sorted(BOARDS.glob("*.json")):
        target = PICTURES / f"dashboard-{path.stem}.png"
        draw_board(json.loads(path.read_text()), recorded["dashboards"][path.stem], recorded["run"], target)
        size = target.stat().st_size
        if size > MOST_BYTES:
            raise SystemExit(f"{target} has {size} bytes, more than {MOST_BYTES}")
        print(f"{target.relative_to(ROOT)}: {size // 1000} kB")


def draw_board(board: dict[str, Any], data: dict[str, Any], run: dict[str, Any], target: Path) -> None:
    """Draw a dashboard's panels where Grafana would have them, and write the picture with few colours."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot
    from PIL import Image

    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    with mpl.rc_context({"font.size": 8, "axes.edgecolor": "#9aa5b1", "axes.linewidth": 0.6}):
        figure = pyplot.figure(figsize=(COLUMNS * COLUMN_INCHES, rows * ROW_INCHES), dpi=100, facecolor="#eef1f4")
        for panel in board["panels"]:
            place = panel["gridPos"]
            left, top = place["x"] / COLUMNS, 1 - place["y"] / rows
            if panel["type"] == "row":
                figure.text(0.006, top - 0.7 / rows, panel["title"], fontsize=10, fontweight="bold")
                continue
            width, height = place["w"] / COLUMNS, place["h"] / rows
            box = (left + 0.045, top - height + 2.1 / rows, width - 0.055, height - 3.5 / rows)
            draw_panel(figure.add_axes(box), panel, data[str(panel["id"])], run)
        figure.savefig(target)
        pyplot.close(figure)
    with Image.open(target) as image:
        few = image.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(target, optimize=True)


def draw_panel(axes: Any, panel: dict[str, Any], data: list[dict[str, Any]], run: dict[str, Any]) -> None:
    """Draw one panel's series over the seconds of the run."""
    unit = panel["fieldConfig"]["defaults"].get("unit", "short")
    axes.set_title(panel["title"], loc="left", fontsize=9)
    lines = quiet = 0
    for query_data, asked in zip(data, panel["targets"], strict=True):
        for one in query_data["series"]:
            seconds = [i * run["step_seconds"] for i in range(len(one["values"]))]
            values = [math.nan if value is None else value for value in one["values"]]
            if not all(map(math.isnan, values)):
                name = legend(asked["legendFormat"], one["labels"])
                # A counter that exists from the start has a series for each of its reasons, most of them at zero.
                axes.plot(seconds, values, linewidth=1.2, label=name if any(one["values"]) else None)
                lines += any(one["values"])
                quiet += not any(one["values"])
    if quiet:
        axes.plot([], [], color="#9aa5b1", label=f"{quiet} at zero" if lines else f"all {quiet} at zero")
    if lines or quiet:
        axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.13), ncols=2 if lines < 5 else 3, fontsize=6.5,
                    frameon=False, borderpad=0, handlelength=1.2, columnspacing=1.0)  # fmt: skip
    else:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes, color="#55616e")
    axes.set_xlim(0, run["seconds"])
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: in_unit(value, unit))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f} s")
    axes.locator_params(nbins=5)
    axes.grid(color="#dfe4ea", linewidth=0.5)
    at = 0
    for phase in run["phases"][:-1]:
        at += phase["seconds"]
        axes.axvline(at, color="#55616e", linewidth=0.6, linestyle=":")


def main() -> None:
    """Record, or draw what was recorded."""
    parser = argparse.ArgumentParser(description="Record a run for the dashboards, or draw it.")
    parser.add_argument("what", choices=["record", "draw"])
    {"record": record, "draw": draw}[parser.parse_args().what]()


if __name__ == "__main__":
    main()
