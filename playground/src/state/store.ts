/** What the page knows. Nothing of it outlives the page; the API key least of all. */

import { batch, computed, signal } from "@preact/signals";
import * as api from "../api/client";
import type { PreviewAnswer, Preset, Strategy, Usage } from "../api/types";
import { Frames } from "../model/frames";
import { type Medium, read, sizeText } from "../model/media";
import { initial, LETTERS, type Letter, pruningOf, type Setting, UNPRUNED } from "../model/settings";

export type ColumnId = Letter | "reference";

/** A prediction for one column: its budget's tokens, before anything is generated. */
export interface Preview {
  loading: boolean;
  answer: PreviewAnswer | null;
  error: Error | null;
  /** Input and budget that `answer` belongs to. */
  input: string;
}

/** An answer of one column. Times are measured in this browser, in milliseconds. */
export interface Run {
  state: "waiting" | "running" | "done" | "failed" | "cancelled";
  text: string;
  usage: Usage | null;
  finish: string;
  error: Error | null;
  input: string;
  started: number;
  first: number | null;
  last: number | null;
}

export interface Reading {
  name: string;
  size: number;
  share: number;
}

export const key = signal("");
export const models = signal<string[]>([]);
export const model = signal("");
export const catalogue = signal<Strategy[]>([]);
export const presets = signal<Preset[]>([]);
/** Why the catalogue is not there. */
export const connection = signal<Error | null>(null);
export const connecting = signal(true);

export const media = signal<Medium[]>([]);
export const reading = signal<Reading | null>(null);
export const mediaError = signal<string>("");
export const question = signal("");
export const labelled = signal(false);
/** Question of an example and its right answer; both empty where people ask their own. */
export const expected = signal({ question: "", answer: "" });
export const maxTokens = signal(64);

export const settings = signal<Setting[]>([]);
export const withReference = signal(true);
export const previews = signal<Partial<Record<Letter, Preview>>>({});
export const runs = signal<Partial<Record<ColumnId, Run>>>({});
/** Grows when previews that failed are worth another try. */
export const attempt = signal(0);
export const asking = signal(false);
/** Grows while an answer is awaited, so that elapsed times are drawn. */
export const clock = signal(0);

/** Medium that the columns show, and its temporal step. */
export const shown = signal(0);
export const step = signal(0);
export const overlayOn = signal(true);

export const kinds = computed(() => new Set(media.value.map((medium) => medium.modality as string)));
export const visualStrategies = computed(() =>
  catalogue.value.filter((one) => one.part === "visual" && one.name !== "none"),
);
export const kvStrategies = computed(() => catalogue.value.filter((one) => one.part === "kv"));
export const previewable = computed(() => media.value.length > 0 && model.value !== "");
export const ready = computed(() => previewable.value && question.value.trim() !== "");

/** Everything of a request but its budget, as a short text that changes when the request does. */
export const input = computed(() =>
  JSON.stringify([media.value.map((medium) => medium.id), model.value, labelled.value, question.value]),
);
/** How `input` begins while the media stay the same. */
export const mediaInput = computed(() => `[${JSON.stringify(media.value.map((medium) => medium.id))},`);
export const columnInput = (column: ColumnId): string => {
  const setting = settings.value.find((one) => one.letter === column);
  return input.value + JSON.stringify(setting ? pruningOf(setting) : UNPRUNED);
};

const frames = new Map<number, Frames>();

/** Decoder of a video. */
export function framesOf(medium: Medium): Frames {
  let decoder = frames.get(medium.id);
  if (!decoder) frames.set(medium.id, (decoder = new Frames(medium.url)));
  return decoder;
}

/** Ask the server for its models, strategies and presets. */
export async function connect(): Promise<void> {
  connecting.value = true;
  const access = { key: key.value };
  try {
    const [names, strategies, named] = await Promise.all([
      api.models(access),
      api.strategies(access),
      api.presets(access),
    ]);
    batch(() => {
      models.value = names.map((one) => one.id);
      if (!models.value.includes(model.value)) model.value = models.value[0] ?? "";
      catalogue.value = strategies;
      presets.value = named;
      connection.value = null;
      previews.value = {};
      attempt.value += 1;
      if (!settings.value.length) settings.value = [initial("A", 0.5, firstStrategy())];
    });
  } catch (error) {
    connection.value = error as Error;
  } finally {
    connecting.value = false;
  }
}

function firstStrategy(): string {
  const usable = visualStrategies.value.filter((one) => one.needs.length === 0 && one.modality.length > 1);
  return (usable.find((one) => one.name === "divprune") ?? usable[0] ?? visualStrategies.value[0])?.name ?? "";
}

let readingNow: AbortController | null = null;

/** Add files, one after the other. Those before a bad one stay. */
export async function add(files: Iterable<File>): Promise<void> {
  cancelReading();
  const controller = (readingNow = new AbortController());
  mediaError.value = "";
  try {
    for (const file of files) {
      reading.value = { name: file.name, size: file.size, share: 0 };
      const medium = await read(
        file,
        (share) => (reading.value = { name: file.name, size: file.size, share }),
        controller.signal,
      );
      media.value = [...media.value, medium];
    }
  } catch (error) {
    if ((error as Error).name !== "AbortError") mediaError.value = (error as Error).message;
  } finally {
    if (readingNow === controller) reading.value = null;
  }
}

export function cancelReading(): void {
  readingNow?.abort();
  reading.value = null;
}

export function remove(id: number): void {
  const medium = media.value.find((one) => one.id === id);
  if (!medium) return;
  URL.revokeObjectURL(medium.url);
  frames.get(id)?.close();
  frames.delete(id);
  batch(() => {
    media.value = media.value.filter((one) => one.id !== id);
    shown.value = Math.max(0, Math.min(shown.value, media.value.length - 1));
    step.value = 0;
  });
}

export function clear(): void {
  for (const medium of media.value) remove(medium.id);
}

export function update(setting: Setting): void {
  settings.value = settings.value.map((one) => (one.letter === setting.letter ? setting : one));
}

/** Add a setting that differs from the last one: half its budget. */
export function addSetting(): void {
  const free = LETTERS.find((letter) => !settings.value.some((one) => one.letter === letter));
  if (!free) return;
  const last = settings.value.at(-1);
  const base = last ?? initial(free, 0.5, firstStrategy());
  const keep = Math.max(0.01, Math.round(base.visual.keep * 50) / 100);
  const tokens = Math.max(1, Math.floor(base.visual.tokens / 2));
  const added = { ...base, letter: free, preset: null, visual: { ...base.visual, keep, tokens } };
  settings.value = [...settings.value, added].sort((a, b) => a.letter.localeCompare(b.letter));
}

export function removeSetting(letter: Letter): void {
  const { [letter]: _preview, ...restPreviews } = previews.value;
  const { [letter]: _run, ...restRuns } = runs.value;
  batch(() => {
    settings.value = settings.value.filter((one) => one.letter !== letter);
    previews.value = restPreviews;
    runs.value = restRuns;
  });
}

/** One line about the media, for the screen reader's status. */
export const mediaSummary = computed(() => {
  const total = media.value.reduce((sum, medium) => sum + medium.size, 0);
  return media.value.length
    ? `${media.value.length} ${media.value.length === 1 ? "file" : "files"}, ${sizeText(total)}`
    : "";
});
