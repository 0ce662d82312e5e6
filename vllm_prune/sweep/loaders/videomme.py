"""Video-MME (arXiv 2405.21075): multiple-choice questions about videos, without subtitles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..graders import Expectation, check
from ..samples import DataError, Sample


def read(folder: Path, coordinates: str) -> Iterator[Sample]:
    """Video-MME: `videomme/test-*.parquet`, videos as `data/VIDEOID.mp4`.

    A row has `videoID`, `question_id`, `duration` (short, medium, long), `question`, `options` (four, each beginning
    with its letter) and `answer` (the letter). Questions whose video is not on the disk are left out, as the videos
    come in twenty parts.
    """
    from pyarrow import parquet

    files = sorted((folder / "videomme").glob("test-*.parquet"))
    if not files:
        raise DataError(f"{folder} has no videomme/test-*.parquet")
    for path in files:
        for row in parquet.read_table(path).to_pylist():
            if (folder / _video(row)).is_file():
                yield _sample(folder, row)


def _video(row: dict[str, Any]) -> str:
    return f"data/{row['videoID']}.mp4"


def _sample(folder: Path, row: dict[str, Any]) -> Sample:
    question = "\n".join(
        [row["question"], *row["options"], "Which option is right? Answer with its letter, and nothing else."]
    )
    content = [{"type": "video_url", "video_url": {"url": _video(row)}}, {"type": "text", "text": question}]
    expectation = Expectation(row["answer"], "choice")
    check(expectation)
    request = {"messages": [{"role": "user", "content": content}], "max_tokens": 8}
    return Sample(row["question_id"], request, expectation, row["duration"], folder)
