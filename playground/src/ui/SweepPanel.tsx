import { useRef, useState } from "preact/hooks";
import type { Letter } from "../model/settings";
import { budgetOf, type Cost, COSTS, costOf, parseSweep, type Row, select, type Sweep } from "../model/sweep";
import { settings, update } from "../state/store";
import { Chart } from "./Chart";

/** A result of `vllm-prune sweep`: accuracy against cost, and the way from a point to a setting. */
export function SweepPanel() {
  const chooser = useRef<HTMLInputElement>(null);
  const [sweep, setSweep] = useState<Sweep | null>(null);
  const [problem, setProblem] = useState("");
  const load = async (file: File | undefined) => {
    if (!file) return;
    try {
      setSweep(parseSweep(await file.text(), file.name));
      setProblem("");
    } catch (error) {
      setProblem((error as Error).message);
    }
  };
  return (
    <section class="sweep" aria-labelledby="sweep-title">
      <div class="heading">
        <h2 id="sweep-title">Sweep</h2>
        <button type="button" onClick={() => chooser.current?.click()}>
          Load a result
        </button>
        <input
          ref={chooser}
          type="file"
          accept=".json,application/json"
          hidden
          aria-label="Result of a sweep"
          onChange={(event) => {
            const file = event.currentTarget.files?.[0];
            event.currentTarget.value = "";
            void load(file);
          }}
        />
        {!sweep && (
          <span class="note">
            the <code>sweep.json</code> of <code>vllm-prune sweep</code>: right answers against cost, on your own
            requests
          </span>
        )}
      </div>
      {problem && (
        <p class="problem" role="alert">
          {problem}
        </p>
      )}
      {sweep && <Result key={sweep.file} sweep={sweep} />}
    </section>
  );
}

function Result({ sweep }: { sweep: Sweep }) {
  const [part, setPart] = useState(sweep.parts[0] ?? "none");
  const [group, setGroup] = useState(sweep.groups.includes("all") ? "all" : sweep.groups[0]!);
  const [cost, setCost] = useState<Cost>("kept_share");
  const [chosen, choose] = useState<Row | null>(null);
  const { reference, rows } = select(sweep, part, group);
  const measured = rows.filter((row) => row.n > 0);
  const picked = chosen && rows.includes(chosen) ? chosen : null;
  return (
    <>
      <p class="note">
        {[sweep.data, sweep.model, `${sweep.samples} samples`].filter(Boolean).join(", ")}. Bars and ranges are 95%
        intervals.
      </p>
      <div class="heading">
        <Choice name="Part" value={part} values={sweep.parts} change={setPart} />
        <Choice name="Samples" value={group} values={sweep.groups} change={setGroup} />
        <Choice
          name="Cost"
          value={cost}
          values={Object.keys(COSTS)}
          change={(value) => setCost(value as Cost)}
          text={(value) => COSTS[value as Cost]}
        />
      </div>
      <Chart rows={measured} reference={reference} cost={cost} chosen={picked} choose={choose} />
      <Take row={picked} />
      <Table rows={rows} cost={cost} chosen={picked} choose={choose} />
    </>
  );
}

interface ChoiceProps {
  name: string;
  value: string;
  values: string[];
  change: (value: string) => void;
  text?: (value: string) => string;
}

function Choice({ name, value, values, change, text = (one) => one }: ChoiceProps) {
  return (
    <label class="inline">
      {name}
      <select value={value} onChange={(event) => change(event.currentTarget.value)}>
        {values.map((one) => (
          <option key={one} value={one}>
            {text(one)}
          </option>
        ))}
      </select>
    </label>
  );
}

const percent = (share: number) => `${(100 * share).toFixed(1)}%`;
const sentence = (text: string) => text[0]!.toUpperCase() + text.slice(1);

function Take({ row }: { row: Row | null }) {
  const [letter, setLetter] = useState<Letter>("A");
  const [said, setSaid] = useState("");
  const setting = settings.value.find((one) => one.letter === letter) ?? settings.value[0];
  const budget = row && setting ? budgetOf(row, setting) : null;
  return (
    <div class="take">
      <p role="status">
        {row ? (
          <>
            <b>
              {row.strategy} {row.keep}
            </b>
            : right answers {percent(row.accuracy)} ({percent(row.accuracy_low)} to {percent(row.accuracy_high)}),{" "}
            {row.prompt_tokens.toFixed(0)} prompt tokens {said}
          </>
        ) : (
          "Choose a point in the plot or in the table."
        )}
      </p>
      <label class="inline">
        Take its budget over to
        <select value={setting?.letter ?? ""} onChange={(event) => setLetter(event.currentTarget.value as Letter)}>
          {settings.value.map((one) => (
            <option key={one.letter} value={one.letter}>
              setting {one.letter}
            </option>
          ))}
        </select>
      </label>
      <button
        type="button"
        class="primary"
        disabled={!budget}
        onClick={() => {
          update(budget!);
          setSaid(`– setting ${budget!.letter} has it`);
        }}
      >
        Use this budget
      </button>
    </div>
  );
}

function Table({
  rows,
  cost,
  chosen,
  choose,
}: {
  rows: Row[];
  cost: Cost;
  chosen: Row | null;
  choose: (row: Row) => void;
}) {
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Points of the sweep">
      <table>
        <thead>
          <tr>
            <th scope="col">Strategy</th>
            <th scope="col" class="number">
              Keep
            </th>
            <th scope="col" class="number">
              Right answers
            </th>
            <th scope="col" class="number">
              95% interval
            </th>
            <th scope="col" class="number">
              {sentence(COSTS[cost])}
            </th>
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={`${row.strategy} ${row.keep}`} class={row === chosen ? "chosen" : ""}>
              <th scope="row">
                {row.n > 0 ? (
                  <label>
                    <input
                      type="radio"
                      name="point"
                      checked={row === chosen}
                      onChange={() => choose(row)}
                      aria-label={`${row.strategy} ${row.keep}`}
                    />{" "}
                    {row.strategy}
                  </label>
                ) : (
                  row.strategy
                )}
              </th>
              <td class="number">{row.keep}</td>
              {row.n > 0 ? (
                <>
                  <td class="number">{percent(row.accuracy)}</td>
                  <td class="number">
                    {percent(row.accuracy_low)} to {percent(row.accuracy_high)}
                  </td>
                  <td class="number">
                    {cost === "kept_share" ? percent(costOf(row, cost)) : costOf(row, cost).toFixed(0)}
                  </td>
                </>
              ) : (
                <td class="refused" colSpan={3}>
                  refused: {row.refused}
                </td>
              )}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
