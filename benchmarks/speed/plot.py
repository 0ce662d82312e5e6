"""A picture of every load: throughput of each arm over stock, its range over rounds, and its bound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def draw(cells: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a PNG with one panel for each load.

    Args:
        cells: summaries of loads; those without a whole round are left out.
        path: of the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [cell for cell in cells if cell["rows"]]
    height = max((len(cell["rows"]) for cell in shown), default=1)
    columns = min(3, max(1, len(shown)))
    lines = max(1, -(-len(shown) // columns))
    figure, axes = pyplot.subplots(lines, columns, figsize=(6 * columns, (0.3 * height + 1.2) * lines), squeeze=False)
    for panel in axes.flat[len(shown) :]:
        panel.axis("off")
    for panel, cell in zip(axes.flat, shown, strict=False):
        rows = cell["rows"][::-1]
        ratios = [row["throughput_ratio"] for row in rows]
        ranges = [[row["throughput_ratio"] - row["throughput_lowest"] for row in rows],
                  [row["throughput_highest"] - row["throughput_ratio"] for row in rows]]  # fmt: skip
        panel.barh([row["arm"] for row in rows], ratios, xerr=ranges, height=0.7)
        bounds = [(i, row["ratio_bound"]) for i, row in enumerate(rows) if "ratio_bound" in row]
        panel.plot([bound for _, bound in bounds], [i for i, _ in bounds], "k|", markersize=12, label="bound")
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set(title=f"{cell['workload']}, {cell['concurrency']} in flight", xlabel="requests/s, stock = 1")
        if bounds:
            panel.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
