import { useState } from "preact/hooks";
import { decode } from "../model/bitmap";
import { describe, LETTERS, pruningOf, type Setting } from "../model/settings";
import { ask, itemOf, visualOf } from "../state/requests";
import {
  addSetting,
  asking,
  catalogue,
  type ColumnId,
  columnInput,
  media,
  overlayOn,
  previews,
  ready,
  removeSetting,
  runs,
  settings,
  shown,
  withReference,
} from "../state/store";
import { Answer } from "./Answer";
import { CopyDialog } from "./CopyDialog";
import { Enlarged } from "./Enlarged";
import { KeptOverlay } from "./KeptOverlay";
import { Numbers } from "./Numbers";
import { Picture } from "./Picture";
import { Problem } from "./Problem";
import { SettingForm } from "./SettingForm";

/** The settings side by side, the unpruned reference first. Rows line up over the columns. */
export function Columns() {
  return (
    <section class="compare" aria-labelledby="compare-title">
      <div class="heading">
        <h2 id="compare-title">Settings</h2>
        <button
          type="button"
          onClick={addSetting}
          disabled={settings.value.length >= LETTERS.length || !catalogue.value.length}
        >
          Add a setting
        </button>
        {settings.value.length >= LETTERS.length && <small>four at most</small>}
        <label class="check end">
          <input
            type="checkbox"
            checked={overlayOn.value}
            onChange={(event) => (overlayOn.value = event.currentTarget.checked)}
          />
          darken dropped tokens
        </label>
      </div>
      <div class="columns">
        {withReference.value && <Reference />}
        {settings.value.map((setting) => (
          <SettingColumn key={setting.letter} setting={setting} />
        ))}
      </div>
    </section>
  );
}

function Reference() {
  const medium = media.value[shown.value];
  return (
    <article class="column" data-column="reference" aria-label="Reference without a budget">
      <div class="head">
        <h3>No budget</h3>
        <span class="badge">reference</span>
      </div>
      <p class="form note">
        The same question with every visual token and the whole cache: what the settings are compared with.
      </p>
      <div class="shot">
        {medium ? <Picture medium={medium} steps={stepsShown()} /> : <p class="empty">Your picture appears here.</p>}
      </div>
      <Answer column="reference" />
      <Numbers column="reference" />
      <Foot column="reference" />
    </article>
  );
}

/** Temporal steps of the shown medium, as the first answer that has them says. */
export function stepsShown(): number {
  for (const { letter } of settings.value) {
    const item = itemOf(visualOf(letter)?.visual, shown.value);
    if (item) return item.grid[0];
  }
  return 1;
}

function SettingColumn({ setting }: { setting: Setting }) {
  const { letter } = setting;
  return (
    <article class="column" data-column={letter} aria-label={`Setting ${letter}: ${describe(setting)}`}>
      <div class="head">
        <h3>
          <b class="letter" data-letter={letter}>
            {letter}
          </b>{" "}
          <span class="sr">Setting {letter}</span>
        </h3>
        <button
          type="button"
          class="icon"
          aria-label={`Remove setting ${letter}`}
          disabled={settings.value.length < 2}
          onClick={() => removeSetting(letter)}
        >
          ×
        </button>
      </div>
      <SettingForm setting={setting} />
      <Shot setting={setting} />
      <Answer column={letter} />
      <Numbers column={letter} />
      <Foot column={letter} />
    </article>
  );
}

const CAPTIONS = { engine: "kept by the engine", preview: "in the preview", "old preview": "updating…" };

function Shot({ setting }: { setting: Setting }) {
  const { letter } = setting;
  const [large, setLarge] = useState(false);
  const medium = media.value[shown.value];
  const visual = visualOf(letter);
  const item = itemOf(visual?.visual, shown.value);
  const preview = previews.value[letter];
  if (!medium)
    return (
      <div class="shot">
        <p class="empty">What this setting keeps of your picture appears here.</p>
      </div>
    );
  const content = (
    <Picture medium={medium} steps={item?.grid[0] ?? 1}>
      {item && <KeptOverlay kept={decode(item)} letter={letter} />}
    </Picture>
  );
  return (
    <div class="shot" aria-busy={preview?.loading ?? false}>
      {content}
      <p class="caption">
        {item ? (
          <span aria-live="polite">
            <b>{item.kept_tokens}</b> of {item.input_tokens} tokens <span class="note">{CAPTIONS[visual!.from]}</span>
          </span>
        ) : (
          <span class="note">
            {!pruningOf(setting).visual
              ? "visual tokens are not pruned"
              : preview?.loading
                ? "asking for a preview…"
                : "no overlay yet"}
          </span>
        )}
        <button
          type="button"
          class="small"
          onClick={() => setLarge(true)}
          title="Enlarge"
          aria-label={`Enlarge the picture of setting ${letter}`}
        >
          ⤢
        </button>
      </p>
      <progress class={preview?.loading ? "thin" : "thin off"} aria-hidden="true" />
      {preview?.error && !preview.loading && runs.value[letter]?.state !== "failed" && (
        <Problem error={preview.error} />
      )}
      {large && (
        <Enlarged title={`Setting ${letter}, ${medium.name}`} onClose={() => setLarge(false)}>
          {content}
        </Enlarged>
      )}
    </div>
  );
}

function Foot({ column }: { column: ColumnId }) {
  const [copying, setCopying] = useState(false);
  const name = column === "reference" ? "the reference" : `setting ${column}`;
  const run = runs.value[column];
  const stale = run && run.input !== columnInput(column);
  return (
    <div class="foot">
      <button type="button" disabled={!ready.value || asking.value} onClick={() => void ask([column])}>
        {stale ? "Ask again" : "Ask this"}
        <span class="sr"> ({name} alone)</span>
      </button>
      {column !== "reference" && (
        <button type="button" onClick={() => setCopying(true)}>
          Copy as…<span class="sr"> ({name})</span>
        </button>
      )}
      {copying && column !== "reference" && <CopyDialog letter={column} onClose={() => setCopying(false)} />}
    </div>
  );
}
