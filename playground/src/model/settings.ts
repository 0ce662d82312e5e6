/** Settings that are compared, and their `pruning` field. */

import type { Preset, Pruning, Strategy } from "../api/types";

export const LETTERS = ["A", "B", "C", "D"] as const;
export type Letter = (typeof LETTERS)[number];

/** A budget: `keep` is a ratio, `tokens` a number; `by` says which one counts. */
export interface Budget {
  /** Empty where this part is off. */
  strategy: string;
  by: "keep" | "max_tokens";
  keep: number;
  tokens: number;
  /** Only what differs from the strategy's defaults. */
  options: Record<string, unknown>;
}

export interface Setting {
  letter: Letter;
  visual: Budget;
  kv: Budget;
  /** The operator's preset in the place of the two; null for none. */
  preset: Preset | null;
}

export function initial(letter: Letter, keep: number, visual: string): Setting {
  return {
    letter,
    visual: { strategy: visual, by: "keep", keep, tokens: 256, options: {} },
    kv: { strategy: "", by: "keep", keep: 0.5, tokens: 512, options: {} },
    preset: null,
  };
}

function part(budget: Budget): Record<string, unknown> | null {
  if (!budget.strategy) return null;
  const size = budget.by === "keep" ? { keep: budget.keep } : { max_tokens: budget.tokens };
  const options = Object.keys(budget.options).length ? { options: budget.options } : {};
  return { strategy: budget.strategy, ...size, ...options };
}

/** The request field. A preset is written out, as its name alone leaves no room for `return_kept`. */
export function pruningOf(setting: Setting): Pruning {
  return setting.preset ? setting.preset.pruning : { visual: part(setting.visual), kv: part(setting.kv) };
}

export const UNPRUNED: Pruning = { visual: null, kv: null };

/** The same budget, with the kept tokens in the answer. */
export function withKept(pruning: Pruning): Pruning {
  return pruning.visual ? { ...pruning, visual: { ...pruning.visual, return_kept: true } } : pruning;
}

/** Whether a strategy takes every kind of media that is there. */
export function fits(strategy: Strategy, kinds: ReadonlySet<string>): boolean {
  return strategy.part === "kv" || [...kinds].every((kind) => strategy.modality.includes(kind));
}

/** One line that names a setting, for screen readers and headings. */
export function describe(setting: Setting): string {
  if (setting.preset) return `preset ${setting.preset.name}`;
  const one = (name: string, budget: Budget) =>
    `${name} ${budget.strategy} ${budget.by === "keep" ? budget.keep : `${budget.tokens} tokens`}`;
  const parts = [
    setting.visual.strategy && one("visual", setting.visual),
    setting.kv.strategy && one("KV", setting.kv),
  ];
  return parts.filter(Boolean).join(", ") || "nothing pruned";
}
