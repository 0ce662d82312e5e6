import type { OptionSchema, Strategy } from "../api/types";
import { type Budget, fits, type Letter, type Setting } from "../model/settings";
import { previewOf, visualOf } from "../state/requests";
import { kinds, kvStrategies, presets, previews, runs, update, visualStrategies } from "../state/store";
import { ServerError } from "../api/client";
import { NumberInput } from "./NumberInput";

/** Strategy and budget of a setting, for the picture and for the cache. */
export function SettingForm({ setting }: { setting: Setting }) {
  const { letter } = setting;
  const visual = visualOf(letter);
  const preview = previewOf(letter);
  return (
    <div class="form">
      {presets.value.length > 0 && (
        <label class="row">
          <span>Preset</span>
          <select
            value={setting.preset?.name ?? ""}
            aria-label={`Preset of setting ${letter}`}
            onChange={(event) => {
              const name = event.currentTarget.value;
              update({ ...setting, preset: presets.value.find((one) => one.name === name) ?? null });
            }}
          >
            <option value="">none, as below</option>
            {presets.value.map((preset) => (
              <option key={preset.name} value={preset.name}>
                {preset.name}
              </option>
            ))}
          </select>
        </label>
      )}
      {setting.preset ? (
        <pre class="preset">{JSON.stringify(setting.preset.pruning, null, 1)}</pre>
      ) : (
        <>
          <BudgetForm
            name="Visual"
            label="Visual tokens"
            part="visual"
            letter={letter}
            budget={setting.visual}
            strategies={visualStrategies.value}
            most={visual?.visual.input_tokens}
            kept={visual?.from === "old preview" ? undefined : visual?.visual.kept_tokens}
            change={(visual) => update({ ...setting, visual })}
          />
          <BudgetForm
            name="KV cache"
            label="KV cache"
            part="kv"
            letter={letter}
            budget={setting.kv}
            strategies={kvStrategies.value}
            most={preview?.answer.prompt_tokens}
            kept={preview?.old ? undefined : preview?.answer.kv?.kept_tokens}
            change={(kv) => update({ ...setting, kv })}
          />
        </>
      )}
    </div>
  );
}

interface FormProps {
  /** In the names of the controls. */
  name: string;
  /** As people read it. */
  label: string;
  part: "visual" | "kv";
  letter: Letter;
  budget: Budget;
  strategies: Strategy[];
  /** Tokens that there are, where the server has said it. */
  most: number | undefined;
  /** How many of them stay; undefined while the server counts. */
  kept: number | undefined;
  change: (budget: Budget) => void;
}

/** Whether the server blames a field of this part. */
function blamed(letter: Letter, part: string, field: string): boolean {
  const errors = [previews.value[letter]?.error, runs.value[letter]?.error];
  return errors.some((error) => error instanceof ServerError && error.param === `pruning.${part}.${field}`);
}

function BudgetForm(form: FormProps) {
  const { name, letter, budget, strategies, change } = form;
  const strategy = strategies.find((one) => one.name === budget.strategy);
  const title = `${name} of setting ${letter}`;
  return (
    <fieldset>
      <legend class="sr">{title}</legend>
      <StrategyRow {...form} />
      {budget.strategy !== "" && <SizeRow {...form} title={title} />}
      {strategy && <Options strategy={strategy} budget={budget} title={title} change={change} />}
    </fieldset>
  );
}

function StrategyRow({ name, label, part, letter, budget, strategies, change }: FormProps) {
  return (
    <label class="row">
      <span>{label}</span>
      <select
        value={budget.strategy}
        aria-label={`${name} strategy of setting ${letter}`}
        aria-invalid={blamed(letter, part, "strategy")}
        onChange={(event) => change({ ...budget, strategy: event.currentTarget.value, options: {} })}
      >
        <option value="">keep all</option>
        {strategies.map((one) => {
          const fitting = fits(one, kinds.value);
          return (
            <option key={one.name} value={one.name} disabled={!fitting}>
              {one.name}
              {fitting ? "" : ` (${one.modality.join(", ")} only)`}
            </option>
          );
        })}
      </select>
    </label>
  );
}

function SizeRow({ part, letter, budget, most, kept, change, title }: FormProps & { title: string }) {
  const ratio = budget.by === "keep";
  const value = ratio ? budget.keep : budget.tokens;
  const limits = ratio
    ? { min: 0.01, max: 1, step: 0.01 }
    : { min: 1, max: Math.max(most ?? 1024, budget.tokens), step: 1 };
  const set = (size: number) => change({ ...budget, ...(ratio ? { keep: size } : { tokens: Math.round(size) }) });
  return (
    <div class="budget">
      <select
        aria-label={`Unit of the budget, ${title}`}
        value={budget.by}
        onChange={(event) => change({ ...budget, by: event.currentTarget.value as Budget["by"] })}
      >
        <option value="keep">keep ratio</option>
        <option value="max_tokens">most tokens</option>
      </select>
      <NumberInput
        min={0}
        max={ratio ? 1 : undefined}
        step={ratio ? "any" : 1}
        value={value}
        aria-label={`Budget as a number, ${title}`}
        aria-invalid={blamed(letter, part, budget.by)}
        set={set}
      />
      <input
        type="range"
        {...limits}
        value={value}
        aria-label={`Budget, ${title}`}
        aria-invalid={blamed(letter, part, budget.by)}
        onInput={(event) => set(event.currentTarget.valueAsNumber)}
      />
      <p class="note meaning">{meaning(part, budget, most, kept)}</p>
    </div>
  );
}

const THINGS = { visual: "visual tokens", kv: "cached rows" };

/** What a budget comes to: in words until the server has counted, then in its numbers. */
function meaning(part: FormProps["part"], budget: Budget, most: number | undefined, kept: number | undefined) {
  const things = THINGS[part];
  if (most !== undefined && kept !== undefined) return `keeps ${kept} of ${most} ${things}`;
  if (budget.by === "max_tokens") return `keeps at most ${budget.tokens} ${things}`;
  return `keeps ${Math.round(budget.keep * 1000) / 10}% of the ${things}`;
}

function Options({
  strategy,
  budget,
  title,
  change,
}: {
  strategy: Strategy;
  budget: Budget;
  title: string;
  change: (budget: Budget) => void;
}) {
  const properties = Object.entries(strategy.options.properties ?? {})
    .map(([name, schema]) => [name, present(schema)] as const)
    .filter(([, schema]) => usable(schema));
  const set = (name: string, value: unknown, schema: OptionSchema) => {
    const { [name]: _old, ...options } = budget.options;
    if (value !== schema.default) options[name] = value;
    change({ ...budget, options });
  };
  return (
    <details>
      <summary>
        about <code>{strategy.name}</code>
        {properties.length ? ", options" : ""}
      </summary>
      <p class="note">
        Keeps {strategy.summary}. {strategy.paper}
        {strategy.needs.length ? `; needs ${strategy.needs.join(", ").replaceAll("_", " ")}` : ""}.
      </p>
      {properties.map(([name, schema]) => (
        <label class="row" key={name}>
          <span>{name}</span>
          <Option
            schema={schema}
            value={budget.options[name] ?? schema.default}
            label={`${name}, ${title}`}
            set={(value) => set(name, value, schema)}
          />
        </label>
      ))}
    </details>
  );
}

/** The schema of an option's values other than null, which stands for the server's choice. */
const present = (schema: OptionSchema): OptionSchema => {
  const branch = schema.anyOf?.find((one) => one.type !== "null");
  return branch ? { ...branch, ...schema, type: branch.type } : schema;
};

const usable = (schema: OptionSchema): boolean =>
  Boolean(schema.enum) || ["boolean", "integer", "number"].includes(schema.type ?? "");

function Option({
  schema,
  value,
  label,
  set,
}: {
  schema: OptionSchema;
  value: unknown;
  label: string;
  set: (value: unknown) => void;
}) {
  if (schema.enum) {
    return (
      <select
        aria-label={label}
        value={String(value)}
        onChange={(event) => set(schema.enum!.find((one) => String(one) === event.currentTarget.value))}
      >
        {schema.enum.map((one) => (
          <option key={String(one)} value={String(one)}>
            {String(one)}
          </option>
        ))}
      </select>
    );
  }
  if (schema.type === "boolean") {
    return (
      <input
        type="checkbox"
        aria-label={label}
        checked={value === true}
        onChange={(event) => set(event.currentTarget.checked)}
      />
    );
  }
  return (
    <NumberInput
      aria-label={label}
      value={(value ?? null) as number | null}
      placeholder={schema.anyOf ? "the server's choice" : undefined}
      clear={schema.anyOf ? () => set(schema.default) : undefined}
      min={schema.minimum}
      max={schema.maximum}
      step={schema.type === "integer" ? 1 : "any"}
      set={set}
    />
  );
}
