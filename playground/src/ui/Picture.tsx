import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import type { Medium } from "../model/media";
import { framesOf, step } from "../state/store";

/** A medium with something drawn over it. For a video the frame in the middle of the chosen temporal step is shown. */
export function Picture({ medium, steps, children }: { medium: Medium; steps: number; children?: ComponentChildren }) {
  return (
    <div class="picture">
      {medium.modality === "image" ? <Still medium={medium} /> : <Frame medium={medium} steps={steps} />}
      {children}
    </div>
  );
}

function Still({ medium }: { medium: Medium }) {
  const [broken, setBroken] = useState(false);
  if (broken)
    return <p class="plain">This browser cannot show {medium.name}; the kept tokens are drawn on a plain ground.</p>;
  return <img src={medium.url} alt="" onError={() => setBroken(true)} />;
}

function Frame({ medium, steps }: { medium: Medium; steps: number }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const [problem, setProblem] = useState("");
  const at = Math.min(step.value, steps - 1);
  useEffect(() => {
    let current = true;
    const frames = framesOf(medium);
    frames.ready
      .then(() => frames.at(frames.timeOf(at, steps)))
      .then((frame) => {
        if (!current || !canvas.current) return;
        canvas.current.width = frame.width;
        canvas.current.height = frame.height;
        canvas.current.getContext("2d")!.drawImage(frame, 0, 0);
        canvas.current.dataset["step"] = String(at);
        setProblem("");
      })
      .catch((error: Error) => current && setProblem(error.message));
    return () => {
      current = false;
    };
  }, [medium.id, at, steps]);
  return (
    <>
      <canvas class="frame" ref={canvas} aria-hidden="true" hidden={problem !== ""} />
      {problem && <p class="plain">{problem}</p>}
    </>
  );
}
