import { useState } from "preact/hooks";
import { type Letter, pruningOf } from "../model/settings";
import { type ChatRequest, curl, preset, sdk } from "../model/snippets";
import { labelled, maxTokens, media, model, question, settings } from "../state/store";
import { Enlarged } from "./Enlarged";

const KINDS = { curl: "curl", sdk: "OpenAI SDK", preset: "preset" } as const;
type Kind = keyof typeof KINDS;

/** A setting as text to take along. The API key is not part of it. */
export function CopyDialog({ letter, onClose }: { letter: Letter; onClose: () => void }) {
  const [kind, setKind] = useState<Kind>("curl");
  const [said, setSaid] = useState("");
  const setting = settings.value.find((one) => one.letter === letter);
  if (!setting) return null;
  const pruning = pruningOf(setting);
  const request: ChatRequest = {
    model: model.value,
    media: media.value,
    question: question.value,
    labelled: labelled.value,
    maxTokens: maxTokens.value,
    pruning,
  };
  const text =
    kind === "curl"
      ? curl(request)
      : kind === "sdk"
        ? sdk(request)
        : preset(pruning, setting.preset?.name ?? "my-budget");
  return (
    <Enlarged title={`Setting ${letter} as text`} onClose={onClose}>
      <div class="choice" role="group" aria-label="Form">
        {(Object.keys(KINDS) as Kind[]).map((one) => (
          <button
            type="button"
            key={one}
            aria-pressed={kind === one}
            onClick={() => {
              setKind(one);
              setSaid("");
            }}
          >
            {KINDS[one]}
          </button>
        ))}
        <button
          type="button"
          class="primary"
          onClick={() => void copy(text).then((done) => setSaid(done ? "copied" : "select the text and copy it"))}
        >
          Copy
        </button>
        <span role="status" class="note">
          {said}
        </span>
      </div>
      <pre class="code" tabIndex={0} aria-label={KINDS[kind]}>
        {text}
      </pre>
    </Enlarged>
  );
}

/** The clipboard is there on localhost and over HTTPS alone; elsewhere the old way is tried. */
async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const code = document.querySelector("pre.code");
    if (!code) return false;
    getSelection()?.selectAllChildren(code);
    return document.execCommand("copy");
  }
}
