import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { stepFlags } from "../model/bitmap";
import { describe, type Letter } from "../model/settings";
import { media, settings, shown, step } from "../state/store";
import { COLOURS, compare, drawDifference } from "./drawing";
import { Picture } from "./Picture";
import { keptOf } from "./ViewBar";

/** Which visual tokens one setting keeps and another does not. */
export function Difference() {
  const [chosen, choose] = useState<[Letter, Letter]>(["A", "B"]);
  const canvas = useRef<HTMLCanvasElement>(null);
  const letters = settings.value.map((setting) => setting.letter);
  const first = letters.includes(chosen[0]) ? chosen[0] : letters[0]!;
  const second =
    letters.includes(chosen[1]) && chosen[1] !== first ? chosen[1] : letters.find((letter) => letter !== first)!;
  const medium = media.value[shown.value]!;
  const [one, other] = [keptOf(first, shown.value), keptOf(second, shown.value)];
  const fits = one !== null && other !== null && one.flags.length === other.flags.length;
  const at = fits ? Math.min(step.value, one.steps - 1) : 0;
  useLayoutEffect(() => {
    if (!fits || !canvas.current) return;
    drawDifference(canvas.current, stepFlags(one, at), stepFlags(other, at), one.rows, one.columns, [
      COLOURS[first],
      COLOURS[second],
    ]);
  }, [one, other, at, first, second]);
  const counts = fits ? compare(one.flags, other.flags) : null;
  const pick = (which: 0 | 1, letter: Letter) =>
    choose(which === 0 ? [letter, letter === second ? first : second] : [letter === first ? second : first, letter]);
  return (
    <section class="difference" aria-labelledby="difference-title">
      <div class="heading">
        <h2 id="difference-title">Difference</h2>
        {([first, second] as const).map((letter, which) => (
          <label class="inline" key={which}>
            {which === 0 ? "of" : "and"}
            <select value={letter} onChange={(event) => pick(which as 0 | 1, event.currentTarget.value as Letter)}>
              {settings.value.map((setting) => (
                <option key={setting.letter} value={setting.letter}>
                  {setting.letter}: {describe(setting)}
                </option>
              ))}
            </select>
          </label>
        ))}
      </div>
      {counts && one ? (
        <div class="pair">
          <Picture medium={medium} steps={one.steps}>
            <canvas
              class="overlay"
              ref={canvas}
              role="img"
              data-difference=""
              aria-label={`Visual tokens that only ${first} or only ${second} keeps: ${counts.first} and ${counts.second} of ${one.flags.length}`}
            />
          </Picture>
          <ul class="legend">
            <li>
              <i class="swatch" data-letter={first} data-lean="up" /> only {first} <b>{counts.first}</b>
            </li>
            <li>
              <i class="swatch" data-letter={second} data-lean="down" /> only {second} <b>{counts.second}</b>
            </li>
            <li>
              <i class="swatch clear" /> both <b>{counts.both}</b>
            </li>
            <li>
              <i class="swatch dark" /> neither <b>{counts.neither}</b>
            </li>
            <li class="note">
              visual tokens of {medium.name}, counted in the server's bitmaps
              {one.steps > 1 ? ` over all ${one.steps} steps` : ""}
            </li>
          </ul>
        </div>
      ) : (
        <p class="note">It appears when both settings have a preview or an answer.</p>
      )}
    </section>
  );
}
