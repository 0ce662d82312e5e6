/** A setting as something to take along: curl, the OpenAI SDK, a preset of the configuration. */

import { ROOT } from "../api/client";
import type { Pruning } from "../api/types";
import { labelOf, messagesJson, type Medium } from "./media";

export interface ChatRequest {
  model: string;
  media: readonly Medium[];
  question: string;
  labelled: boolean;
  maxTokens: number;
  pruning: Pruning;
}

const variable = (number: number) => `FILE_${number + 1}`;
const quoted = (name: string) => `'${name.replaceAll("'", `'\\''`)}'`;

/** For a POSIX shell. Files are read from the working directory; the key comes from OPENAI_API_KEY. */
export function curl(request: ChatRequest): string {
  const names = new Map(request.media.map((medium, number) => [medium.id, variable(number)]));
  // The body stands in a here-document in which the shell replaces variables, so all else that it would replace is escaped.
  const escape = (text: string) => text.replace(/[\\`$]/g, "\\$&");
  const messages = messagesJson(request.media, request.question, request.labelled, (medium) => `\0${medium.id}\0`)
    .map((part) => (part === "," ? ",\n    " : part.startsWith("\0") ? placeholder(part) : escape(part)))
    .join("");
  function placeholder(part: string): string {
    const medium = request.media.find((one) => part === `\0${one.id}\0`)!;
    return `data:${medium.mime};base64,$${names.get(medium.id)}`;
  }
  const body = [
    `  "model": ${escape(JSON.stringify(request.model))},`,
    `  "messages": ${messages},`,
    `  "max_completion_tokens": ${request.maxTokens},`,
    `  "temperature": 0,`,
    `  "pruning": ${escape(JSON.stringify(request.pruning))}`,
  ];
  return [
    ...request.media.map((medium, number) => `${variable(number)}=$(base64 < ${quoted(medium.name)} | tr -d '\\n')`),
    `curl ${new URL("v1/chat/completions", ROOT)} \\`,
    `  -H "Content-Type: application/json" \\`,
    `  -H "Authorization: Bearer $OPENAI_API_KEY" \\`,
    `  --data-binary @- <<BODY`,
    "{",
    ...body,
    "}",
    "BODY",
  ].join("\n");
}

/** JSON in Python's words. */
function python(value: unknown, indent = ""): string {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map((one) => python(one, indent)).join(", ")}]`;
  return `{${Object.entries(value)
    .map(([key, one]) => `${JSON.stringify(key)}: ${python(one, indent)}`)
    .join(", ")}}`;
}

/** For Python with the package `openai`. */
export function sdk(request: ChatRequest): string {
  const content: string[] = [];
  request.media.forEach((medium, number) => {
    const field = `${medium.modality}_url`;
    if (request.labelled) content.push(`{"type": "text", "text": ${JSON.stringify(labelOf(medium, number))}},`);
    content.push(
      `{"type": "${field}", "${field}": {"url": data_url(${JSON.stringify(medium.name)}, "${medium.mime}")}},`,
    );
  });
  content.push(`{"type": "text", "text": ${JSON.stringify(request.question)}},`);
  return `import base64
import os

import openai


def data_url(name, mime):
    with open(name, "rb") as file:
        return f"data:{mime};base64,{base64.b64encode(file.read()).decode()}"


client = openai.OpenAI(
    base_url="${new URL("v1", ROOT)}",
    api_key=os.environ.get("OPENAI_API_KEY", "unused"),
)
answer = client.chat.completions.create(
    model=${JSON.stringify(request.model)},
    messages=[
        {
            "role": "user",
            "content": [
${content.map((line) => `                ${line}`).join("\n")}
            ],
        }
    ],
    max_completion_tokens=${request.maxTokens},
    temperature=0,
    extra_body={"pruning": ${python(request.pruning)}},
)
print(answer.choices[0].message.content)
print(answer.usage.prompt_tokens, answer.usage.pruning)
`;
}

/** For the operator's configuration file; JSON values are YAML. */
export function preset(pruning: Pruning, name: string): string {
  const spaced = (value: unknown): string => {
    if (Array.isArray(value)) return `[${value.map(spaced).join(", ")}]`;
    if (value === null || typeof value !== "object") return JSON.stringify(value);
    return `{${Object.entries(value)
      .map(([key, one]) => `${key}: ${spaced(one)}`)
      .join(", ")}}`;
  };
  const lines = Object.entries(pruning).map(([part, value]) => `    ${part}: ${spaced(value)}`);
  return `# Requests pick it with "pruning": "${name}" or with "model": "MODEL@${name}".
presets:
  ${name}:
${lines.join("\n")}
`;
}
