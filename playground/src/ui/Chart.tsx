import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import { type Cost, COSTS, costOf, type Row } from "../model/sweep";

interface Props {
  rows: Row[];
  reference: Row | null;
  cost: Cost;
  chosen: Row | null;
  choose: (row: Row) => void;
}

// Told apart by hue and lightness in both colour schemes; the table beneath says the same in words.
const LINES = [
  "#4da3ff",
  "#f59f2f",
  "#22b98f",
  "#e665a8",
  "#9a7bff",
  "#d94f4f",
  "#7f9a2b",
  "#2aa7c9",
  "#b0793d",
  "#8a94a3",
];
const HEIGHT = 300;
const NEAR_PIXELS = 18;

/** Accuracy against cost: one line per strategy, a bar for each point's interval, the unpruned accuracy as a line. */
export function Chart({ rows, reference, cost, chosen, choose }: Props) {
  const host = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const box = host.current!;
    const dark = matchMedia("(prefers-color-scheme: dark)");
    let plot = draw(box);
    const again = () => {
      plot.destroy();
      plot = draw(box);
    };
    const size = new ResizeObserver(() => plot.setSize({ width: box.clientWidth, height: HEIGHT }));
    size.observe(box);
    dark.addEventListener("change", again);
    return () => {
      size.disconnect();
      dark.removeEventListener("change", again);
      plot.destroy();
    };
  }, [rows.map((row) => `${row.strategy} ${row.keep} ${row.group} ${row.part}`).join(), reference, cost, chosen]);

  function draw(box: HTMLElement): uPlot {
    const style = getComputedStyle(box);
    const ink = style.getPropertyValue("--ink").trim();
    const rule = style.getPropertyValue("--rule").trim();
    const names = [...new Set(rows.map((row) => row.strategy))];
    const xs = [...new Set(rows.map((row) => costOf(row, cost)))].sort((a, b) => a - b);
    const at = (strategy: string, x: number) =>
      rows.find((row) => row.strategy === strategy && costOf(row, cost) === x);
    const data = [
      xs,
      ...names.map((name) => xs.map((x) => at(name, x)?.accuracy ?? null)),
      xs.map(() => reference?.accuracy ?? null),
    ];
    const axis = { stroke: ink, grid: { stroke: rule, width: 1 }, ticks: { stroke: rule, width: 1 } };
    const percentages = (_plot: uPlot, values: number[]) => values.map((value) => `${Math.round(value * 100)}%`);
    const plot = new uPlot(
      {
        width: box.clientWidth,
        height: HEIGHT,
        scales: { x: { time: false, range: (_plot, _low, high) => [0, high * 1.04 || 1] }, y: { range: [0, 1.02] } },
        axes: [
          {
            ...axis,
            label: COSTS[cost],
            labelSize: 22,
            labelGap: -4,
            size: 36,
            ...(cost === "kept_share" ? { values: percentages } : {}),
          },
          { ...axis, label: "right answers", labelSize: 22, size: 52, values: percentages },
        ],
        cursor: { drag: { x: false, y: false }, points: { show: false } },
        legend: { live: false },
        series: [
          {},
          ...names.map((name, i) => ({
            label: name,
            stroke: LINES[i % LINES.length]!,
            width: 1.5,
            spanGaps: true,
            points: { show: true, size: 7 },
            ...(name === "random" || name === "uniform" ? { dash: [5, 4] } : {}),
          })),
          { label: "no budget", stroke: ink, width: 1, dash: [2, 3], points: { show: false } },
        ],
        hooks: { draw: [(plot) => intervals(plot, names)] },
      },
      data as uPlot.AlignedData,
      box,
    );
    plot.over.addEventListener("click", (event) => {
      const row = nearest(plot, event.offsetX, event.offsetY);
      if (row) choose(row);
    });
    return plot;
  }

  function intervals(plot: uPlot, names: string[]): void {
    const { ctx } = plot;
    ctx.save();
    ctx.setLineDash([]);
    for (const row of rows) {
      const number = names.indexOf(row.strategy);
      if (!plot.series[number + 1]?.show) continue;
      const x = plot.valToPos(costOf(row, cost), "x", true);
      const [low, high] = [plot.valToPos(row.accuracy_low, "y", true), plot.valToPos(row.accuracy_high, "y", true)];
      ctx.strokeStyle = LINES[number % LINES.length]!;
      ctx.lineWidth = devicePixelRatio;
      ctx.globalAlpha = 0.6;
      ctx.beginPath();
      ctx.moveTo(x, low);
      ctx.lineTo(x, high);
      for (const y of [low, high]) {
        ctx.moveTo(x - 3 * devicePixelRatio, y);
        ctx.lineTo(x + 3 * devicePixelRatio, y);
      }
      ctx.stroke();
      if (row !== chosen) continue;
      ctx.globalAlpha = 1;
      ctx.lineWidth = 2 * devicePixelRatio;
      ctx.beginPath();
      ctx.arc(x, plot.valToPos(row.accuracy, "y", true), 8 * devicePixelRatio, 0, 2 * Math.PI);
      ctx.stroke();
    }
    ctx.restore();
  }

  function nearest(plot: uPlot, x: number, y: number): Row | null {
    const distance = (row: Row) =>
      Math.hypot(plot.valToPos(costOf(row, cost), "x") - x, plot.valToPos(row.accuracy, "y") - y);
    const [best] = [...rows].sort((a, b) => distance(a) - distance(b));
    return best && distance(best) <= NEAR_PIXELS ? best : null;
  }

  return (
    <div
      class="chart"
      ref={host}
      role="img"
      aria-label={`Right answers against ${COSTS[cost]}; the table below has the same points`}
    />
  );
}
