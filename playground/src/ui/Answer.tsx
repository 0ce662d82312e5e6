import { type ColumnId, columnInput, runs } from "../state/store";
import { Problem } from "./Problem";

/** The streamed answer of a column. */
export function Answer({ column }: { column: ColumnId }) {
  const run = runs.value[column];
  if (!run)
    return (
      <div class="answer">
        <p class="note">no answer yet</p>
      </div>
    );
  const stale = run.input !== columnInput(column) && run.state !== "running";
  return (
    <div class={stale ? "answer stale" : "answer"} aria-busy={run.state === "running"}>
      {run.state === "failed" && run.error ? <Problem error={run.error} /> : null}
      {run.state === "waiting" && <p class="note">waits for its turn</p>}
      {(run.text || run.state === "done") && (
        <p class="text" aria-live="polite">
          {run.text || "(an empty answer)"}
        </p>
      )}
      {run.state === "running" && !run.text && <p class="note">…</p>}
      {run.state === "cancelled" && <p class="note">cancelled</p>}
      {run.finish === "length" && <p class="note">cut at the longest answer that is allowed</p>}
      {stale && <p class="note">answer to an earlier setting or question</p>}
    </div>
  );
}
