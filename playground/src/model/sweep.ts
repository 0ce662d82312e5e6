/** Result of `vllm-prune sweep`: the JSON that its report writes. */

import type { Setting } from "./settings";

export interface Row {
  part: string;
  strategy: string;
  keep: number;
  group: string;
  n: number;
  refused?: string;
  right: number;
  accuracy: number;
  accuracy_low: number;
  accuracy_high: number;
  kept_share: number;
  prompt_tokens: number;
  visual_kept_tokens: number;
  kv_rows: number;
  kv_evicted_rows: number;
}

export interface Sweep {
  file: string;
  data: string;
  model: string;
  samples: number;
  rows: Row[];
  groups: string[];
  parts: string[];
}

export const COSTS = {
  kept_share: "share of tokens kept",
  prompt_tokens: "prompt tokens",
  visual_kept_tokens: "visual tokens kept",
  kv_left: "KV rows left",
} as const;
export type Cost = keyof typeof COSTS;

export const costOf = (row: Row, cost: Cost): number =>
  cost === "kv_left" ? row.kv_rows - row.kv_evicted_rows : row[cost];

const NUMBERS = [
  "accuracy",
  "accuracy_low",
  "accuracy_high",
  "kept_share",
  "prompt_tokens",
  "visual_kept_tokens",
  "kv_rows",
  "kv_evicted_rows",
] as const;

/**
 * Read a file's text.
 *
 * @throws Error that says what is wrong with the file.
 */
export function parseSweep(text: string, file: string): Sweep {
  let body: { rows?: unknown; data?: unknown; model?: unknown; samples?: unknown };
  try {
    body = JSON.parse(text);
  } catch {
    throw new Error(`${file} is not JSON. Choose the sweep.json that vllm-prune sweep wrote.`);
  }
  if (!Array.isArray(body?.rows) || !body.rows.length) {
    throw new Error(`${file} has no rows. Choose the sweep.json that vllm-prune sweep wrote.`);
  }
  const rows = body.rows as Row[];
  rows.forEach((row, i) => {
    const lacks = row.n ? NUMBERS.find((name) => typeof row[name] !== "number") : undefined;
    if (lacks || typeof row.strategy !== "string" || typeof row.keep !== "number") {
      throw new Error(
        `${file}, row ${i + 1}: ${lacks ?? "strategy or keep"} is missing. Was it written by vllm-prune sweep?`,
      );
    }
  });
  const unique = (values: string[]) => [...new Set(values)];
  return {
    file,
    data: String(body.data ?? ""),
    model: String(body.model ?? ""),
    samples: Math.max(...rows.map((row) => row.n)),
    rows,
    groups: unique(rows.map((row) => row.group)),
    parts: unique(rows.map((row) => row.part)).filter((part) => part !== "none"),
  };
}

/** Rows of one part and group with the reference in front. */
export function select(sweep: Sweep, part: string, group: string): { reference: Row | null; rows: Row[] } {
  const inside = sweep.rows.filter((row) => row.group === group);
  const mine = inside.filter((row) => row.part === part && row.strategy !== "unpruned");
  const unprunedRow = inside.find((row) => row.part === part && row.strategy === "unpruned");
  return { reference: unprunedRow ?? inside.find((row) => row.part === "none") ?? null, rows: mine };
}

/** A setting with a row's budget; null where the row names none that a setting can hold. */
export function budgetOf(row: Row, setting: Setting): Setting | null {
  const off = (which: "visual" | "kv") => ({ ...setting[which], strategy: "" });
  const on = (which: "visual" | "kv", strategy: string, keep: number) => ({
    ...setting[which],
    strategy,
    keep,
    by: "keep" as const,
    options: {},
  });
  const base = { ...setting, preset: null };
  if (row.part === "visual" || row.part === "video")
    return { ...base, visual: on("visual", row.strategy, row.keep), kv: off("kv") };
  if (row.part === "kv") return { ...base, visual: off("visual"), kv: on("kv", row.strategy, row.keep) };
  // A combined row reads "divprune + gui_kv 0.2"; `keep` is that of the visual part.
  const both = /^(\S+) \+ (\S+) ([\d.e-]+)$/.exec(row.strategy);
  if (row.part !== "both" || !both) return null;
  return { ...base, visual: on("visual", both[1]!, row.keep), kv: on("kv", both[2]!, Number(both[3])) };
}
