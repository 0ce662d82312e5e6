/** The server's public routes. The key is an argument of every call, so that nothing here remembers it. */

import type { PreviewAnswer, Preset, Strategy, Usage } from "./types";
import { events } from "./events";

/** The page lies at ROOT/playground, also behind a proxy that serves the project below a prefix. */
export const ROOT = new URL(".", document.baseURI);

/** A refusal, in the server's own words. */
export class ServerError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly param: string | null = null,
    readonly retryAfter: string | null = null,
  ) {
    super(message);
  }
}

export interface Access {
  key: string;
  signal?: AbortSignal;
}

async function call(path: string, access: Access, body?: Blob): Promise<Response> {
  const headers: Record<string, string> = {};
  if (access.key) headers["Authorization"] = `Bearer ${access.key}`;
  if (body) headers["Content-Type"] = "application/json";
  let response: Response;
  try {
    response = await fetch(new URL(path, ROOT), {
      method: body ? "POST" : "GET",
      headers,
      body: body ?? null,
      signal: access.signal ?? null,
      credentials: "same-origin",
      cache: "no-store",
    });
  } catch (error) {
    if (access.signal?.aborted) throw error;
    throw new ServerError(`No answer from ${ROOT.origin}. Check that the server runs and can be reached from here.`, 0);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** The error of an OpenAI error body; vLLM and proxies have other shapes, too. */
async function refusal(response: Response): Promise<ServerError> {
  const text = await response.text().catch(() => "");
  const retry = response.headers.get("Retry-After");
  return (
    readError(text, response.status, retry) ??
    new ServerError(`HTTP ${response.status} ${response.statusText}`, response.status, null, retry)
  );
}

function readError(text: string, status: number, retry: string | null): ServerError | null {
  try {
    const body = JSON.parse(text);
    const error = body.error ?? body;
    const message = typeof error === "string" ? error : (error.message ?? body.detail);
    if (typeof message !== "string") return null;
    return new ServerError(message, status, error.param ?? null, retry);
  } catch {
    return null;
  }
}

async function list<T>(path: string, access: Access): Promise<T[]> {
  const body = await (await call(path, access)).json();
  return body.data as T[];
}

export const strategies = (access: Access) => list<Strategy>("v1/pruning/strategies", access);
export const presets = (access: Access) => list<Preset>("v1/pruning/presets", access);
export const models = (access: Access) => list<{ id: string }>("v1/models", access);

export async function preview(body: Blob, access: Access): Promise<PreviewAnswer> {
  return (await call("v1/pruning/preview", access, body)).json();
}

/** What a streamed answer brings, in the order of arrival. */
export type Piece = { text: string } | { usage: Usage } | { finish: string };

/** Stream one chat completion. */
export async function* chat(body: Blob, access: Access): AsyncGenerator<Piece> {
  const response = await call("v1/chat/completions", access, body);
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) {
      throw new ServerError(
        chunk.error.message ?? "The stream ended with an error.",
        chunk.error.code ?? 500,
        chunk.error.param ?? null,
      );
    }
    const choice = chunk.choices?.[0];
    const text = (choice?.delta?.reasoning_content ?? choice?.delta?.reasoning ?? "") + (choice?.delta?.content ?? "");
    if (text) yield { text };
    if (choice?.finish_reason) yield { finish: choice.finish_reason };
    if (chunk.usage) yield { usage: chunk.usage };
  }
}
