import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { count, decode, type Kept, stepFlags } from "../model/bitmap";
import type { Medium } from "../model/media";
import { itemOf, visualOf } from "../state/requests";
import { framesOf, media, settings, shown, step } from "../state/store";
import { COLOURS } from "./drawing";

const MOST_STILLS = 16;

/** Which medium and which temporal step the columns show. */
export function ViewBar() {
  const medium = media.value[shown.value];
  if (!medium || (media.value.length < 2 && medium.modality === "image")) return null;
  return (
    <section class="view" aria-label="View">
      {media.value.length > 1 && (
        <div class="choice" role="group" aria-label="Shown file">
          {media.value.map((one, number) => (
            <button
              type="button"
              key={one.id}
              aria-pressed={shown.value === number}
              onClick={() => {
                shown.value = number;
                step.value = 0;
              }}
            >
              {number + 1} <span class="name">{one.name}</span>
            </button>
          ))}
        </div>
      )}
      {medium.modality === "video" && <Strip medium={medium} />}
    </section>
  );
}

/** Kept tokens of the shown medium, for every setting that has them. */
export function keptOf(letter: (typeof settings.value)[number]["letter"], number: number): Kept | null {
  const item = itemOf(visualOf(letter)?.visual, number);
  return item ? decode(item) : null;
}

/** Stills of the video and, below, each setting's share of kept tokens per temporal step; a slider to scrub. */
function Strip({ medium }: { medium: Medium }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const rows = settings.value.map(({ letter }) => ({ letter, kept: keptOf(letter, shown.value) }));
  const steps = rows.find((row) => row.kept)?.kept?.steps ?? 1;
  const at = Math.min(step.value, steps - 1);
  const frames = framesOf(medium);
  useEffect(() => {
    let current = true;
    const context = canvas.current!.getContext("2d")!;
    void (async () => {
      const stills = Math.min(steps, MOST_STILLS);
      await frames.ready;
      const width = canvas.current!.width / stills;
      context.clearRect(0, 0, canvas.current!.width, canvas.current!.height);
      for (let i = 0; i < stills && current; i++) {
        const frame = await frames.at(frames.timeOf(Math.floor(((i + 0.5) * steps) / stills), steps));
        if (current) fit(context, frame, i * width, width, canvas.current!.height);
      }
    })().catch(() => undefined);
    return () => {
      current = false;
    };
  }, [medium.id, steps]);
  const time = frames.duration ? `, about ${frames.timeOf(at, steps).toFixed(1)} s` : "";
  return (
    <div class="strip">
      <div class="reel">
        <canvas ref={canvas} width={1280} height={96} aria-hidden="true" />
        <i class="mark" style={{ left: `${(at / steps) * 100}%`, width: `${100 / steps}%` }} />
      </div>
      {rows.map((row) => row.kept && <Shares key={row.letter} letter={row.letter} kept={row.kept} />)}
      <label class="line">
        <span>
          Step {at + 1} of {steps}
          {time}
        </span>
        <input
          type="range"
          min={0}
          max={Math.max(0, steps - 1)}
          step={1}
          value={at}
          disabled={steps < 2}
          aria-label="Temporal step of the video"
          aria-valuetext={`step ${at + 1} of ${steps}${time}`}
          onInput={(event) => (step.value = event.currentTarget.valueAsNumber)}
        />
      </label>
    </div>
  );
}

/** Draw a whole frame into a place of the strip. */
function fit(context: CanvasRenderingContext2D, frame: ImageBitmap, x: number, width: number, height: number): void {
  const scale = Math.min((width - 4) / frame.width, height / frame.height);
  const [w, h] = [frame.width * scale, frame.height * scale];
  context.drawImage(frame, x + (width - w) / 2, (height - h) / 2, w, h);
}

/** One bar per temporal step: the share of its visual tokens that a setting keeps. */
function Shares({ letter, kept }: { letter: keyof typeof COLOURS; kept: Kept }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const shares = Array.from({ length: kept.steps }, (_, at) => count(stepFlags(kept, at)) / (kept.rows * kept.columns));
  useLayoutEffect(() => {
    const context = canvas.current!.getContext("2d")!;
    const { width, height } = canvas.current!;
    context.clearRect(0, 0, width, height);
    context.fillStyle = COLOURS[letter];
    shares.forEach((share, at) => {
      const bar = Math.max(share > 0 ? 1 : 0, share * height);
      context.fillRect((at * width) / kept.steps, height - bar, width / kept.steps - 1, bar);
    });
  }, [kept, letter]);
  return (
    <div class="shares">
      <b class="letter" data-letter={letter}>
        {letter}
      </b>
      <canvas
        ref={canvas}
        width={1280}
        height={28}
        role="img"
        aria-label={`Share of visual tokens that setting ${letter} keeps, per step: ${shares.map((share) => `${Math.round(share * 100)} %`).join(", ")}`}
      />
    </div>
  );
}
