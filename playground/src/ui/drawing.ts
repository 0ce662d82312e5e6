/** Overlays: one block of equal pixels per visual token, stretched over the picture by the style sheet. */

import type { Letter } from "../model/settings";

export const COLOURS: Record<Letter, string> = { A: "#4da3ff", B: "#ffa33a", C: "#2dd4a7", D: "#f472b6" };
/** Over dropped cells. Kept ones stay clear, so that the picture shows through unchanged. */
const SCRIM = "rgba(8, 11, 16, 0.8)";
const LONGEST = 2048;

/** Side of a cell in canvas pixels. */
function cellSize(rows: number, columns: number): number {
  return Math.max(3, Math.min(48, Math.floor(LONGEST / Math.max(rows, columns))));
}

function prepare(canvas: HTMLCanvasElement, rows: number, columns: number): [CanvasRenderingContext2D, number] {
  const size = cellSize(rows, columns);
  canvas.width = columns * size;
  canvas.height = rows * size;
  return [canvas.getContext("2d")!, size];
}

/** Darken what was dropped; a thin line inside it marks where it meets what was kept. */
export function drawKept(
  canvas: HTMLCanvasElement,
  flags: Uint8Array,
  rows: number,
  columns: number,
  colour: string,
): void {
  const [context, size] = prepare(canvas, rows, columns);
  const kept = (row: number, column: number) =>
    row >= 0 && row < rows && column >= 0 && column < columns && flags[row * columns + column] === 1;
  const line = Math.max(1, Math.round(size / 12));
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      if (kept(row, column)) continue;
      const [x, y] = [column * size, row * size];
      context.fillStyle = SCRIM;
      context.fillRect(x, y, size, size);
      context.fillStyle = colour;
      if (kept(row - 1, column)) context.fillRect(x, y, size, line);
      if (kept(row + 1, column)) context.fillRect(x, y + size - line, size, line);
      if (kept(row, column - 1)) context.fillRect(x, y, line, size);
      if (kept(row, column + 1)) context.fillRect(x + size - line, y, line, size);
    }
  }
}

export interface Counts {
  both: number;
  first: number;
  second: number;
  neither: number;
}

/** Compare two bitmaps of equal size. */
export function compare(first: Uint8Array, second: Uint8Array): Counts {
  const counts = { both: 0, first: 0, second: 0, neither: 0 };
  for (let i = 0; i < first.length; i++) {
    if (first[i] && second[i]) counts.both++;
    else if (first[i]) counts.first++;
    else if (second[i]) counts.second++;
    else counts.neither++;
  }
  return counts;
}

/** Colour the cells that only one of two settings keeps; strokes lean left or right, so that colour is not all. */
export function drawDifference(
  canvas: HTMLCanvasElement,
  first: Uint8Array,
  second: Uint8Array,
  rows: number,
  columns: number,
  colours: [string, string],
): void {
  const [context, size] = prepare(canvas, rows, columns);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const i = row * columns + column;
      if (first[i] && second[i]) continue;
      const [x, y] = [column * size, row * size];
      if (!first[i] && !second[i]) {
        context.fillStyle = SCRIM;
        context.fillRect(x, y, size, size);
        continue;
      }
      const colour = first[i] ? colours[0] : colours[1];
      context.globalAlpha = 0.6;
      context.fillStyle = colour;
      context.fillRect(x, y, size, size);
      context.globalAlpha = 1;
      context.strokeStyle = "rgba(8, 11, 16, 0.75)";
      context.lineWidth = Math.max(1, size / 10);
      context.beginPath();
      const [from, to] = first[i] ? [y + size, y] : [y, y + size];
      context.moveTo(x, from);
      context.lineTo(x + size, to);
      context.save();
      context.clip(rectangle(x, y, size));
      context.stroke();
      context.restore();
    }
  }
}

function rectangle(x: number, y: number, size: number): Path2D {
  const path = new Path2D();
  path.rect(x, y, size, size);
  return path;
}
