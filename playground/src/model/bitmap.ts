import type { KeptItem } from "../api/types";

/** The kept tokens of one item, one byte each. */
export interface Kept {
  item: KeptItem;
  steps: number;
  rows: number;
  columns: number;
  flags: Uint8Array;
}

const decoded = new WeakMap<KeptItem, Kept>();

/** Decode `kept`; the same object every time, so that drawings can be compared by identity. */
export function decode(item: KeptItem): Kept {
  const known = decoded.get(item);
  if (known) return known;
  const [steps, rows, columns] = item.grid;
  const bytes = Uint8Array.from(atob(item.kept), (character) => character.charCodeAt(0));
  const flags = new Uint8Array(steps * rows * columns);
  for (let i = 0; i < flags.length; i++) flags[i] = ((bytes[i >> 3] ?? 0) >> (7 - (i & 7))) & 1;
  const kept = { item, steps, rows, columns, flags };
  decoded.set(item, kept);
  return kept;
}

/** Flags of one temporal step, row-major. */
export function stepFlags(kept: Kept, step: number): Uint8Array {
  const size = kept.rows * kept.columns;
  const at = Math.min(step, kept.steps - 1) * size;
  return kept.flags.subarray(at, at + size);
}

export function count(flags: Uint8Array): number {
  let sum = 0;
  for (const flag of flags) sum += flag;
  return sum;
}
