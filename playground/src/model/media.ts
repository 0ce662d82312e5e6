/** Pictures and videos as they are sent: one data URL each. */

import type { Modality } from "../api/types";

export interface Medium {
  id: number;
  name: string;
  modality: Modality;
  mime: string;
  size: number;
  /** Address of the file inside this page. */
  url: string;
  /** What is sent. */
  data: string;
}

const BY_ENDING: Record<string, string> = {
  png: "image/png",
  jpg: "image/jpeg",
  jpeg: "image/jpeg",
  webp: "image/webp",
  gif: "image/gif",
  bmp: "image/bmp",
  mp4: "video/mp4",
  webm: "video/webm",
  mov: "video/quicktime",
  mkv: "video/x-matroska",
  avi: "video/x-msvideo",
};

let next = 1;

/** Kind of a file by its type, or by its ending where the system knows no type. */
export function mimeOf(file: File): string {
  return file.type || BY_ENDING[file.name.split(".").pop()?.toLowerCase() ?? ""] || "";
}

/**
 * Read a file.
 *
 * @param progress is told the share that has been read.
 * @throws Error that says which files can be used, or AbortError.
 */
export function read(file: File, progress: (share: number) => void, signal: AbortSignal): Promise<Medium> {
  const mime = mimeOf(file);
  const modality = mime.split("/")[0];
  if (modality !== "image" && modality !== "video") {
    throw new Error(`${file.name} is neither a picture nor a video. Use PNG, JPEG, WebP, MP4 or WebM.`);
  }
  if (!file.size) throw new Error(`${file.name} is empty. Choose another file.`);
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    signal.addEventListener("abort", () => reader.abort());
    reader.onprogress = (event) => progress(event.loaded / file.size);
    reader.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    reader.onerror = () => reject(new Error(`${file.name} cannot be read: ${reader.error?.message}. Choose it again.`));
    reader.onload = () => {
      const base64 = String(reader.result).split(",", 2)[1] ?? "";
      resolve({
        id: next++,
        name: file.name,
        modality,
        mime,
        size: file.size,
        url: URL.createObjectURL(file),
        data: `data:${mime};base64,${base64}`,
      });
    };
    reader.readAsDataURL(file);
  });
}

/**
 * The chat's messages as JSON: media in their order, then the question.
 *
 * @param labelled writes "picture 1 ", "picture 2 ", ... before the media, so that the question can name them.
 * @param urlOf what stands for a medium; its data unless an example is written.
 * @param uuid names the media for the server's caches; empty where their content does.
 */
export function messagesJson(
  media: readonly Medium[],
  question: string,
  labelled: boolean,
  urlOf: (medium: Medium) => string = (medium) => medium.data,
  uuid = "",
): string[] {
  const parts: string[] = ['[{"role":"user","content":['];
  const text = (value: string) => JSON.stringify({ type: "text", text: value });
  media.forEach((medium, number) => {
    const field = `${medium.modality}_url`;
    if (number) parts.push(",");
    if (labelled) parts.push(text(labelOf(medium, number)), ",");
    const name = uuid && `,"uuid":"${uuid}-${number}"`;
    parts.push(`{"type":"${field}","${field}":{"url":"`, urlOf(medium), `"}${name}}`);
  });
  if (question.trim()) parts.push(media.length ? "," : "", text(question));
  return [...parts, "]}]"];
}

/** The text before a medium that lets the question name it. */
export function labelOf(medium: Medium, number: number): string {
  return `${medium.modality === "image" ? "picture" : "video"} ${number + 1} `;
}

/** A size for people. */
export function sizeText(bytes: number): string {
  if (bytes < 1000) return `${bytes} B`;
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(0)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
