#!/usr/bin/env python3
"""Write the playground's examples: pictures and a video of the project's own generators, one question each.

They are committed, as encoders of other versions write other bytes. The demo model is trained on their kind, on other
samples.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.tasks import history, pages, video  # noqa: E402
from benchmarks.tasks.base import Media, Sample  # noqa: E402

TARGET = ROOT / "playground" / "public" / "examples"
CHOSEN: dict[str, tuple[str, Sample]] = {
    "page": ("a web page", pages.sample("test", 2)),
    "session": ("three screenshots", history.sample("test", 1, pictures=3, size=(8, 10))),
    "clip": ("a video", video.sample("test", 2, size=(7, 9), steps=5)),
}


def write_video(medium: Media, path: Path) -> None:
    """H.264 at two frames per second, in the colour format that every browser decodes."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=2, options={"crf": "12", "preset": "veryslow", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = *medium.frames[0].size, "yuv420p"
        for frame in medium.frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def small(image: Image.Image, path: Path) -> None:
    """A PNG of few colours, as the pages are."""
    image.convert("RGB").quantize(96, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Write the files and `examples.json`."""
    TARGET.mkdir(parents=True, exist_ok=True)
    listed: list[dict[str, Any]] = []
    for key, (name, sample) in CHOSEN.items():
        files = []
        for number, medium in enumerate(sample.media, 1):
            stem = key if len(sample.media) == 1 else f"{key}-{number}"
            path = TARGET / f"{stem}.{'mp4' if medium.video else 'png'}"
            if medium.video:
                write_video(medium, path)
            else:
                small(medium.frames[0], path)
            files.append(path.name)
        thumbnail = files[0]
        if sample.media[0].video:
            thumbnail = f"{key}-still.png"
            small(sample.media[0].frames[-1], TARGET / thumbnail)
        listed.append(
            {"name": name, "question": sample.question, "answer": sample.answer, "labelled": sample.numbered,
             "files": files, "thumbnail": thumbnail}
        )  # fmt: skip
        print(f"{name}: {', '.join(files)}; {sample.question} -> {sample.answer}")
    (TARGET / "examples.json").write_text(json.dumps(listed, indent=2) + "\n")


if __name__ == "__main__":
    main()
