import { previewOf } from "../state/requests";
import { type ColumnId, columnInput, runs, type Run, settings } from "../state/store";

/** What a column cost. Every figure is the server's; the two times are measured here and say so. */
export function Numbers({ column }: { column: ColumnId }) {
  const run = runs.value[column];
  const fresh = run?.input === columnInput(column) ? run : undefined;
  const usage = fresh?.usage ?? null;
  const prediction = previewOf(column);
  const preview = prediction?.answer;
  const predicted = !usage && preview ? preview : null;
  const word = prediction?.old ? "updating…" : "predicted";
  const pruning = usage?.pruning;
  const visual = pruning ? pruning.visual : predicted?.visual;
  const kv = pruning ? pruning.kv : predicted?.kv;
  const clamped = (pruning ?? predicted)?.clamped ?? [];
  const unpruned = column === "reference" ? referencePrompt() : preview?.prompt_tokens_unpruned;
  const prompt = usage?.prompt_tokens ?? predicted?.prompt_tokens ?? (column === "reference" ? unpruned : undefined);
  return (
    <div class="numbers">
      <dl>
        <Line
          name="Prompt tokens"
          value={prompt}
          of={column === "reference" ? undefined : unpruned}
          guess={!usage && prompt !== undefined && word}
        />
        <Line
          name="Visual tokens kept"
          value={visual?.kept_tokens}
          of={visual?.input_tokens}
          guess={!pruning && !!visual && word}
        />
        <Line name="KV rows" value={kv?.kept_tokens} of={kv?.prompt_tokens} guess={!pruning && !!kv && word} />
        <Line name="Freed blocks" value={kv?.freed_blocks} />
        <Line name="Answer tokens" value={usage?.completion_tokens} />
        <Line
          name="First token"
          measured
          value={fresh && fresh.first !== null ? `${Math.round(fresh.first - fresh.started)} ms` : undefined}
        />
        <Line name="Tokens/s" measured value={fresh ? speed(fresh) : undefined} />
      </dl>
      <p class="note">* measured in this browser, without help from caches</p>
      {clamped.map((one) => (
        <p class="clamped" key={one.param}>
          Changed by the server: <code>{one.param}</code> {String(one.requested)} → {String(one.applied)} ({one.reason})
        </p>
      ))}
    </div>
  );
}

/** Prompt tokens without pruning, from any preview of the same input. */
function referencePrompt(): number | undefined {
  for (const { letter } of settings.value) {
    const preview = previewOf(letter);
    if (preview) return preview.answer.prompt_tokens_unpruned;
  }
  return undefined;
}

function speed(run: Run): string | undefined {
  const tokens = run.usage?.completion_tokens ?? 0;
  if (run.first === null || run.last === null || tokens < 2 || run.last <= run.first) return undefined;
  const perSecond = ((tokens - 1) * 1000) / (run.last - run.first);
  return perSecond.toFixed(perSecond < 100 ? 1 : 0);
}

interface LineProps {
  name: string;
  value: number | string | undefined;
  of?: number | undefined;
  /** How a prediction is called; false for a fact. */
  guess?: string | false;
  measured?: boolean;
}

function Line({ name, value, of, guess, measured }: LineProps) {
  const share = typeof value === "number" && of ? value / of : null;
  return (
    <div class={guess ? "line guess" : "line"}>
      <dt>
        {name}
        {measured && <span aria-hidden="true"> *</span>}
        {guess && <small> {guess}</small>}
      </dt>
      <dd>
        {value ?? "–"}
        {of !== undefined && value !== undefined && <small> of {of}</small>}
        {share !== null && (
          <i class="share" aria-hidden="true">
            <i style={{ width: `${Math.min(100, share * 100)}%` }} />
          </i>
        )}
      </dd>
    </div>
  );
}
