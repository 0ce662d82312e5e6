import { useLayoutEffect, useRef } from "preact/hooks";

interface Props {
  value: number | null;
  set: (value: number) => void;
  /** Called when the field is emptied; without it the last value comes back. */
  clear?: (() => void) | undefined;
  placeholder?: string | undefined;
  min?: number | undefined;
  max?: number | undefined;
  step?: number | "any" | undefined;
  "aria-label"?: string;
  "aria-invalid"?: boolean;
}

/** A number field that leaves alone what is being typed: "0." is on its way to "0.35", though it reads as 0 already. */
export function NumberInput({ value, set, clear, ...rest }: Props) {
  const input = useRef<HTMLInputElement>(null);
  useLayoutEffect(() => {
    const field = input.current!;
    const unfinished = document.activeElement === field && Number.isNaN(field.valueAsNumber);
    if (!unfinished && !shows(field, value)) field.value = text(value);
  });
  return (
    <input
      {...rest}
      ref={input}
      type="number"
      onInput={(event) => {
        const typed = event.currentTarget.valueAsNumber;
        if (Number.isFinite(typed)) set(typed);
        else if (clear && event.currentTarget.value === "" && !event.currentTarget.validity.badInput) clear();
      }}
      onBlur={(event) => {
        if (!shows(event.currentTarget, value)) event.currentTarget.value = text(value);
      }}
    />
  );
}

const text = (value: number | null): string => (value === null ? "" : String(value));

const shows = (field: HTMLInputElement, value: number | null): boolean =>
  value === null ? field.value === "" : field.valueAsNumber === value;
