"""Samples: OpenAI chat requests with the answers that are expected of them, one per line of a JSONL file."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import math
import mimetypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .graders import Expectation, check

OWN_KEYS = ("id", "expected", "grader", "grader_options", "box", "group")
FILLED_IN = ("model", "pruning", "stream", "stream_options", "n")
MEDIA = ("image_url", "video_url")
MAX_TOKENS = 64


class DataError(ValueError):
    """Data that cannot be used; the message says where and what to change."""


@dataclass(frozen=True)
class Sample:
    """One request with its answer.

    Attributes:
        id: unique in its data.
        request: body of a chat request without `model` and `pruning`; media may be paths relative to `folder`.
        expectation: what is right.
        group: name under which results are also given apart, such as a task; empty for none.
        folder: where relative paths start.
    """

    id: str
    request: dict[str, Any]
    expectation: Expectation
    group: str = ""
    folder: Path = Path()

    def body(self) -> dict[str, Any]:
        """The request with files turned into data URLs, greedy by default.

        Raises:
            DataError: a file that cannot be read.
        """
        body = {"temperature": 0, "seed": 0, **copy.deepcopy(self.request)}
        if "max_completion_tokens" not in body:
            body.setdefault("max_tokens", MAX_TOKENS)
        for part in _media_parts(body["messages"]):
            kind = part["type"]
            url = part[kind]["url"] if isinstance(part[kind], dict) else part[kind]
            options = part[kind] if isinstance(part[kind], dict) else {}
            part[kind] = {**options, "url": data_url(url, self.folder)}
        return body

    @property
    def modalities(self) -> frozenset[str]:
        """Kinds of media in the request: image, video."""
        return frozenset(part["type"].removesuffix("_url") for part in _media_parts(self.request["messages"]))

    def digest(self) -> str:
        """Hash of everything that can change the answer or its grade; files count by size and time of change."""
        files = []
        for part in _media_parts(self.request["messages"]):
            kind = part["type"]
            url = part[kind]["url"] if isinstance(part[kind], dict) else part[kind]
            if not _is_url(url):
                state = _inside(url, self.folder).stat()
                files.append([url, state.st_size, state.st_mtime_ns])
        wanted = self.expectation
        parts = [self.id, self.request, wanted.expected, wanted.grader, wanted.box, dict(wanted.options), files]
        return hashlib.sha256(json.dumps([*parts, self.group], sort_keys=True).encode()).hexdigest()


def data_url(url: str, folder: Path) -> str:
    """`url` itself where it is one, else the file of that name under `folder` as a data URL.

    Raises:
        DataError: no such file, a file outside `folder`, or one of unknown type.
    """
    if _is_url(url):
        return url
    path = _inside(url, folder)
    kind, _ = mimetypes.guess_type(path.name)
    if kind is None or not kind.startswith(("image/", "video/")):
        raise DataError(f"{url}: neither an image nor a video by its name; rename it or send a data URL")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{url}: {error.strerror} (in {folder})") from None
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _is_url(url: str) -> bool:
    return url.startswith(("data:", "http://", "https://"))


def _inside(url: str, folder: Path) -> Path:
    """The file, if its path stays inside the folder: a data file from elsewhere must not send other files."""
    relative = os.path.normpath(url)
    if os.path.isabs(relative) or relative.startswith(".."):
        raise DataError(f"{url}: media files are named relative to the data file and stay inside its folder")
    path = folder / relative
    if not path.is_file():
        raise DataError(f"{url}: no such file in {folder}")
    return path


def _media_parts(messages: Any) -> Iterator[dict[str, Any]]:
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            yield from (part for part in content if part.get("type") in MEDIA)


def read_jsonl(path: Path, limit: int | None = None) -> list[Sample]:
    """Read samples from a JSONL file.

    Args:
        path: each line is a chat request with `expected`, and optionally `id`, `grader` (a name), `grader_options`,
            `box` and `group`.
        limit: take the first so many.

    Raises:
        DataError: with the line to change.
    """
    samples: list[Sample] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    for place, line in enumerate(lines, 1):
        if line.strip() and (limit is None or len(samples) < limit):
            try:
                samples.append(sample_of(json.loads(line), str(place), path.parent))
            except (ValueError, TypeError, AttributeError) as error:
                raise DataError(f"{path}:{place}: {error}") from None
    return checked(samples, str(path))


def checked(samples: list[Sample], source: str) -> list[Sample]:
    """The samples, if there are any and their ids differ.

    Raises:
        DataError: otherwise.
    """
    if not samples:
        raise DataError(f"{source}: no samples")
    ids = {sample.id for sample in samples}
    if len(ids) < len(samples):
        raise DataError(f"{source}: {len(samples) - len(ids)} ids occur twice; give each sample its own")
    return samples


def sample_of(line: Any, default_id: str, folder: Path) -> Sample:
    """A sample from one parsed line.

    Raises:
        ValueError: what is wrong with it.
    """
    if not isinstance(line, dict) or not isinstance(line.get("messages"), list) or not line["messages"]:
        raise ValueError("a line is a JSON object with messages (a chat request) and expected")
    if "expected" not in line:
        raise ValueError("expected is missing: the right answer, or a list of right answers")
    if filled := [key for key in FILLED_IN if key in line]:
        raise ValueError(f"remove {', '.join(filled)}: the sweep fills that in")
    expectation = Expectation(
        line["expected"], line.get("grader", "exact"), _box(line.get("box")), line.get("grader_options") or {}
    )
    check(expectation)
    request = {key: value for key, value in line.items() if key not in OWN_KEYS}
    sample = Sample(str(line.get("id", default_id)), request, expectation, str(line.get("group", "")), folder)
    sample.digest()
    return sample


def _box(box: Any) -> tuple[float, float, float, float] | None:
    if box is None:
        return None
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(n, (int, float)) for n in box)
    if not numbers or not all(map(math.isfinite, box)) or box[0] > box[2] or box[1] > box[3]:
        raise ValueError("box is [left, top, right, bottom] in pixels")
    return float(box[0]), float(box[1]), float(box[2]), float(box[3])
