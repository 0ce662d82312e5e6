import { useLayoutEffect, useRef } from "preact/hooks";

interface Props {
  value: number;
  set: (value: number) => void;
  min?: number | undefined;
  max?: number | undefined;
  step?: number | "any" | undefined;
  "aria-label"?: string;
  "aria-invalid"?: boolean;
}

/** A number field that leaves alone what is being typed: "0." is on its way to "0.35", though it reads as 0 already. */
export function NumberInput({ value, set, ...rest }: Props) {
  const input = useRef<HTMLInputElement>(null);
  useLayoutEffect(() => {
    const field = input.current!;
    const unfinished = document.activeElement === field && Number.isNaN(field.valueAsNumber);
    if (!unfinished && field.valueAsNumber !== value) field.value = String(value);
  });
  return (
    <input
      {...rest}
      ref={input}
      type="number"
      onInput={(event) => {
        const typed = event.currentTarget.valueAsNumber;
        if (Number.isFinite(typed)) set(typed);
      }}
      onBlur={(event) => {
        if (event.currentTarget.valueAsNumber !== value) event.currentTarget.value = String(value);
      }}
    />
  );
}
