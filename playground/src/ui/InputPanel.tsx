import { useRef } from "preact/hooks";
import { EXAMPLES } from "../model/examples";
import { sizeText } from "../model/media";
import { DRAGGED_EXAMPLE, exampleError, takeExample } from "../state/examples";
import { allColumns, ask, cancel } from "../state/requests";
import {
  add,
  asking,
  cancelReading,
  clock,
  expected,
  labelled,
  maxTokens,
  media,
  mediaError,
  mediaSummary,
  question,
  reading,
  ready,
  remove,
  runs,
  settings,
  withReference,
} from "../state/store";
import { NumberInput } from "./NumberInput";
import { useFilesFromAnywhere } from "./useFilesFromAnywhere";

export function InputPanel() {
  return (
    <aside class="input" aria-label="What to ask">
      <DropZone />
      <Examples />
      <MediaList />
      <Question />
    </aside>
  );
}

function DropZone() {
  const chooser = useRef<HTMLInputElement>(null);
  const over = useFilesFromAnywhere((files) => void add(files));
  return (
    <section class={over ? "drop over" : "drop"} aria-labelledby="drop-title">
      <h2 id="drop-title">Pictures or a video</h2>
      <button type="button" class="choose" onClick={() => chooser.current?.click()}>
        Choose files
      </button>
      <p>or drop or paste them anywhere on the page; an example, too</p>
      <input
        ref={chooser}
        type="file"
        multiple
        hidden
        accept="image/*,video/*"
        aria-label="Pictures or videos"
        onChange={(event) => {
          const chosen = [...(event.currentTarget.files ?? [])];
          event.currentTarget.value = "";
          void add(chosen);
        }}
      />
      {reading.value && (
        <div class="reading" role="status">
          <label>
            Reading {reading.value.name} ({sizeText(reading.value.size)})
            <progress max={1} value={reading.value.share} />
          </label>
          <button type="button" onClick={cancelReading}>
            Cancel
          </button>
        </div>
      )}
      {mediaError.value && (
        <p class="problem" role="alert">
          {mediaError.value}
        </p>
      )}
    </section>
  );
}

function Examples() {
  return (
    <section class="examples" aria-labelledby="examples-title">
      <h2 id="examples-title">Examples</h2>
      <ul>
        {EXAMPLES.map((example) => (
          <li key={example.name}>
            <button
              type="button"
              draggable
              onDragStart={(event) => event.dataTransfer?.setData(DRAGGED_EXAMPLE, example.name)}
              onClick={() => void takeExample(example)}
            >
              <img src={example.thumbnail} alt="" width={72} height={54} draggable={false} />
              <span>{example.name}</span>
            </button>
          </li>
        ))}
      </ul>
      {exampleError.value && (
        <p class="problem" role="alert">
          {exampleError.value}
        </p>
      )}
    </section>
  );
}

function MediaList() {
  if (!media.value.length) return null;
  return (
    <section class="files" aria-label="Chosen files">
      <ol>
        {media.value.map((medium, number) => (
          <li key={medium.id}>
            <span class="number">{number + 1}</span>
            <span class="name" title={medium.name}>
              {medium.name}
            </span>
            <small>{sizeText(medium.size)}</small>
            <button type="button" class="icon" aria-label={`Remove ${medium.name}`} onClick={() => remove(medium.id)}>
              ×
            </button>
          </li>
        ))}
      </ol>
      <p class="sum" role="status">
        {mediaSummary.value}
      </p>
      {media.value.length > 1 && (
        <label class="check">
          <input
            type="checkbox"
            checked={labelled.value}
            onChange={(event) => (labelled.value = event.currentTarget.checked)}
          />
          write “picture 1”, “picture 2”, … before them
        </label>
      )}
    </section>
  );
}

function Question() {
  const missing = !media.value.length
    ? "Choose a picture or an example first."
    : !question.value.trim()
      ? "Type a question first."
      : "";
  const submit = () => void ask(allColumns());
  return (
    <section class="question" aria-labelledby="question-title">
      <h2 id="question-title">
        <label for="question">Question</label>
      </h2>
      <textarea
        id="question"
        rows={3}
        value={question.value}
        onInput={(event) => (question.value = event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit();
        }}
      />
      {expected.value.answer && expected.value.question === question.value && media.value.length > 0 && (
        <p class="note">the right answer is “{expected.value.answer}”</p>
      )}
      <label class="line">
        Longest answer, in tokens
        <NumberInput
          min={1}
          max={4096}
          value={maxTokens.value}
          set={(value) => {
            if (value >= 1) maxTokens.value = Math.floor(value);
          }}
        />
      </label>
      <label class="check">
        <input
          type="checkbox"
          checked={withReference.value}
          onChange={(event) => (withReference.value = event.currentTarget.checked)}
        />
        also ask without a budget, as the reference
      </label>
      <div class="actions">
        <button
          type="button"
          class="primary"
          disabled={!ready.value || asking.value}
          aria-describedby="ask-note"
          onClick={submit}
        >
          Ask {settings.value.length + (withReference.value ? 1 : 0) > 1 ? "all" : ""}
        </button>
        {asking.value && (
          <button type="button" onClick={cancel}>
            Cancel
          </button>
        )}
        <span id="ask-note" class="note">
          {asking.value ? "" : missing || <span class="hint">Ctrl + Enter</span>}
        </span>
      </div>
      <Waiting />
    </section>
  );
}

/** Which answer is awaited, and for how long. */
function Waiting() {
  const busy = Object.entries(runs.value).find(([, run]) => run?.state === "running");
  if (!busy) return <p class="waiting" role="status" />;
  const [column, run] = busy;
  const seconds = Math.max(0, clock.value - run!.started) / 1000;
  const doing = run!.first === null ? "waiting for the first token" : "answering";
  return (
    <div class="waiting">
      <p role="status">
        {column === "reference" ? "No budget" : `Setting ${column}`}: {doing}
      </p>
      <progress aria-label="The server is at work" />
      <small aria-hidden="true">{seconds.toFixed(1)} s</small>
    </div>
  );
}
