import { useLayoutEffect, useRef } from "preact/hooks";
import { count, type Kept, stepFlags } from "../model/bitmap";
import type { Letter } from "../model/settings";
import { overlayOn, step } from "../state/store";
import { COLOURS, drawKept } from "./drawing";

/** Kept visual tokens of one setting over the picture. */
export function KeptOverlay({ kept, letter }: { kept: Kept; letter: Letter }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const at = Math.min(step.value, kept.steps - 1);
  useLayoutEffect(() => {
    if (canvas.current) drawKept(canvas.current, stepFlags(kept, at), kept.rows, kept.columns, COLOURS[letter]);
  }, [kept, at, letter]);
  const here = count(stepFlags(kept, at));
  const where = kept.steps > 1 ? ` of step ${at + 1}` : "";
  return (
    <canvas
      class="overlay"
      ref={canvas}
      role="img"
      data-setting={letter}
      hidden={!overlayOn.value}
      aria-label={`Setting ${letter} keeps ${here} of ${kept.rows * kept.columns} visual tokens${where}, ${kept.rows} rows of ${kept.columns}`}
    />
  );
}
