/** Answers of the server's public routes, as far as the page reads them. */

export type Modality = "image" | "video";

/** One picture or video: which visual tokens were kept. `kept` is base64 of a bitmap, row-major, highest bit first. */
export interface KeptItem {
  modality: Modality;
  grid: [steps: number, rows: number, columns: number];
  input_tokens: number;
  kept_tokens: number;
  strategy: string;
  kept: string;
}

export interface VisualUsage {
  strategy: string;
  input_tokens: number;
  kept_tokens: number;
  items?: KeptItem[];
}

export interface KvUsage {
  strategy: string;
  prompt_tokens: number;
  kept_tokens: number;
  evicted_tokens?: number;
  freed_blocks?: number;
  compactions?: number;
}

export interface Clamped {
  param: string;
  requested: number | string;
  applied: number | string;
  reason: string;
}

export interface PruningUsage {
  visual: VisualUsage | null;
  kv: KvUsage | null;
  clamped?: Clamped[];
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  pruning?: PruningUsage;
}

export interface PreviewAnswer {
  visual: VisualUsage | null;
  kv?: KvUsage | null;
  clamped?: Clamped[];
  prompt_tokens: number;
  prompt_tokens_unpruned: number;
}

export interface OptionSchema {
  type?: string;
  title?: string;
  description?: string;
  default?: unknown;
  anyOf?: OptionSchema[];
  enum?: (string | number)[];
  minimum?: number;
  maximum?: number;
}

export interface Strategy {
  name: string;
  part: "visual" | "kv";
  modality: string[];
  needs: string[];
  summary: string;
  paper: string;
  options: { properties?: Record<string, OptionSchema> };
}

export interface Preset {
  name: string;
  pruning: Pruning;
}

/** The request field `pruning`. */
export interface Pruning {
  visual?: Record<string, unknown> | null;
  kv?: Record<string, unknown> | null;
}
