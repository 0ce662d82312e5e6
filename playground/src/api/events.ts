/** Server-sent events of a fetch response: yields the data of each event. */
export async function* events(response: Response): AsyncGenerator<string> {
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data: string[] = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      const lines = (rest + (value ?? "")).split("\n");
      rest = done ? "" : (lines.pop() ?? "");
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
      if (done) break;
    }
    if (data.length) yield data.join("\n");
  } finally {
    void drain(reader);
  }
}

const LAST_MILLISECONDS = 1000;

/** Read what follows [DONE], so that the server sees the answer taken and not a client that left. */
async function drain(reader: ReadableStreamDefaultReader<string>): Promise<void> {
  const late = setTimeout(() => void reader.cancel().catch(() => undefined), LAST_MILLISECONDS);
  try {
    while (!(await reader.read()).done);
  } catch {
    // Cancelled, or the connection ended: nobody waits for more.
  } finally {
    clearTimeout(late);
  }
}
