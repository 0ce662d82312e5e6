/** Previews while a budget moves, and questions. */

import { batch, effect, untracked } from "@preact/signals";
import * as api from "../api/client";
import type { KeptItem, PreviewAnswer, Pruning, VisualUsage } from "../api/types";
import { messagesJson } from "../model/media";
import { type Letter, pruningOf, UNPRUNED, withKept } from "../model/settings";
import {
  asking,
  attempt,
  clock,
  type ColumnId,
  columnInput,
  key,
  labelled,
  maxTokens,
  media,
  mediaInput,
  model,
  type Preview,
  previewable,
  previews,
  question,
  ready,
  type Run,
  runs,
  settings,
  withReference,
} from "./store";

const QUIET_MILLISECONDS = 180;
const QUIET_WHEN_LARGE = 700;
const LARGE_BYTES = 4e6;

function body(pruning: Pruning, extra: Record<string, unknown>, uuid = ""): Blob {
  const rest = Object.entries(extra).map(([name, value]) => `,${JSON.stringify(name)}:${JSON.stringify(value)}`);
  return new Blob([
    `{"model":${JSON.stringify(model.value)},"messages":`,
    ...messagesJson(media.value, question.value, labelled.value, undefined, uuid),
    `,"pruning":${JSON.stringify(pruning)}`,
    ...rest,
    "}",
  ]);
}

const pending = new Map<Letter, { input: string; controller: AbortController }>();

function setPreview(letter: Letter, change: Partial<Preview>): void {
  const blank: Preview = { loading: false, answer: null, error: null, input: "" };
  previews.value = { ...previews.value, [letter]: { ...blank, ...previews.value[letter], ...change } };
}

/** Keep every setting's preview in step with the input and the budget. */
export function startPreviews(): void {
  effect(() => {
    const wanted = new Map<Letter, string>();
    if (previewable.value && attempt.value >= 0)
      for (const { letter } of settings.value) wanted.set(letter, columnInput(letter));
    untracked(() => {
      for (const [letter, { controller, input }] of pending) {
        if (wanted.get(letter) === input) continue;
        controller.abort();
        pending.delete(letter);
        if (previews.value[letter]) setPreview(letter, { loading: false });
      }
      for (const [letter, input] of wanted) {
        if (!pending.has(letter) && previews.value[letter]?.input !== input) void preview(letter, input);
      }
    });
  });
}

async function preview(letter: Letter, input: string): Promise<void> {
  const controller = new AbortController();
  pending.set(letter, { input, controller });
  setPreview(letter, { loading: true });
  const size = media.value.reduce((sum, medium) => sum + medium.size, 0);
  await new Promise((resolve) => setTimeout(resolve, size > LARGE_BYTES ? QUIET_WHEN_LARGE : QUIET_MILLISECONDS));
  const setting = settings.value.find((one) => one.letter === letter);
  if (controller.signal.aborted || !setting) return;
  try {
    const answer = await api.preview(body(pruningOf(setting), {}), { key: key.value, signal: controller.signal });
    setPreview(letter, { answer, error: null, input, loading: false });
  } catch (error) {
    if (!controller.signal.aborted) setPreview(letter, { answer: null, error: error as Error, input, loading: false });
  } finally {
    if (pending.get(letter)?.controller === controller) pending.delete(letter);
  }
}

let current: AbortController | null = null;

function setRun(column: ColumnId, change: Partial<Run>): void {
  const run = runs.value[column];
  if (run) runs.value = { ...runs.value, [column]: { ...run, ...change } };
}

/**
 * A name that no medium had before. With it the server takes nothing from its caches: otherwise a setting whose preview
 * ran the model would get its first token sooner than the reference, and whatever is asked twice sooner than before.
 */
function freshUuid(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return `playground-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/** Ask, one column after the other, so that no answer waits for another's work. */
export async function ask(columns: ColumnId[]): Promise<void> {
  if (asking.value || !ready.value || !columns.length) return;
  const controller = (current = new AbortController());
  const fresh = (column: ColumnId): Run => ({
    state: "waiting",
    text: "",
    usage: null,
    finish: "",
    error: null,
    input: columnInput(column),
    started: 0,
    first: null,
    last: null,
  });
  batch(() => {
    asking.value = true;
    runs.value = { ...runs.value, ...Object.fromEntries(columns.map((column) => [column, fresh(column)])) };
  });
  const ticking = setInterval(() => (clock.value = performance.now()), 200);
  try {
    for (const column of columns) {
      if (!controller.signal.aborted) await askColumn(column, controller.signal);
      if (controller.signal.aborted && runs.value[column]?.state !== "done") setRun(column, { state: "cancelled" });
    }
  } finally {
    clearInterval(ticking);
    asking.value = false;
  }
}

export const allColumns = (): ColumnId[] => [
  ...(withReference.value ? (["reference"] as const) : []),
  ...settings.value.map((setting) => setting.letter),
];

async function askColumn(column: ColumnId, signal: AbortSignal): Promise<void> {
  const setting = settings.value.find((one) => one.letter === column);
  const pruning = setting ? withKept(pruningOf(setting)) : UNPRUNED;
  const extra = {
    max_completion_tokens: maxTokens.value,
    temperature: 0,
    stream: true,
    stream_options: { include_usage: true },
  };
  const blob = body(pruning, extra, freshUuid());
  clock.value = performance.now();
  setRun(column, { state: "running", started: performance.now(), input: columnInput(column) });
  let text = "";
  try {
    for await (const piece of api.chat(blob, { key: key.value, signal })) {
      const now = performance.now();
      if ("text" in piece) {
        text += piece.text;
        setRun(column, { text, last: now, ...(runs.value[column]?.first === null ? { first: now } : {}) });
      } else setRun(column, piece);
    }
    setRun(column, { state: "done" });
  } catch (error) {
    if (!signal.aborted) setRun(column, { state: "failed", error: error as Error });
  }
}

export function cancel(): void {
  current?.abort();
}

/** A medium's item. Servers list items by their place or by modality; within a modality both orders agree. */
export function itemOf(visual: VisualUsage | undefined, number: number): KeptItem | undefined {
  const medium = media.value[number];
  const same = (one: { modality: string }) => one.modality === medium?.modality;
  const rank = media.value.slice(0, number).filter(same).length;
  return visual?.items?.filter(same)[rank];
}

/** The last preview of a column for the media at hand; `old` while one for the present input is awaited. */
export function previewOf(column: ColumnId): { answer: PreviewAnswer; old: boolean } | null {
  const preview = column === "reference" ? undefined : previews.value[column];
  if (!preview?.answer || !preview.input.startsWith(mediaInput.value)) return null;
  return { answer: preview.answer, old: preview.input !== columnInput(column) };
}

/** What is known of a column's visual tokens: the engine's word if its answer is up to date, else the preview's. */
export function visualOf(column: ColumnId): { visual: VisualUsage; from: "engine" | "preview" | "old preview" } | null {
  const wanted = columnInput(column);
  const run = runs.value[column];
  const used = run?.input === wanted ? run.usage?.pruning?.visual : null;
  if (used?.items) return { visual: used, from: "engine" };
  // While a new preview is under way the last one stays, so that the overlay does not flicker.
  const preview = previewOf(column);
  const visual = preview?.answer.visual;
  return visual?.items ? { visual, from: preview!.old ? "old preview" : "preview" } : null;
}
