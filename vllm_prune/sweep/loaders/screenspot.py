"""ScreenSpot-v2 (OS-Atlas, arXiv 2410.23218) and ScreenSpot-Pro (arXiv 2504.07981): where to click on a screenshot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..graders import Expectation, check
from ..samples import DataError, Sample
from .order import turns

PLATFORMS = ("desktop", "mobile", "web")
UNITS = {
    "pixels": "in pixels of the screenshot",
    "unit": "as fractions of its width and height",
    "thousand": "on a scale from 0 to 1000",
}


def version_2(folder: Path, coordinates: str) -> Iterator[Sample]:
    """ScreenSpot-v2: `screenspot_{desktop,mobile,web}_v2.json`, pictures under `screenspotv2_image/`.

    An entry has `img_filename`, `bbox` (left, top, width, height in pixels), `instruction`, `data_type`, `data_source`.
    """

    def platform(name: str) -> Iterator[Sample]:
        for place, entry in enumerate(_entries(folder / f"screenspot_{name}_v2.json")):
            left, top, width, height = entry["bbox"]
            box = (float(left), float(top), float(left + width), float(top + height))
            picture = f"screenspotv2_image/{entry['img_filename']}"
            group = f"{name} {entry['data_type']}"
            yield _sample(folder, f"{name}-{place}", picture, entry["instruction"], box, group, coordinates)

    yield from turns(map(platform, PLATFORMS))


def pro(folder: Path, coordinates: str) -> Iterator[Sample]:
    """ScreenSpot-Pro: one JSON file per application under `annotations/`, pictures under `images/`.

    An entry has `id`, `img_filename`, `bbox` (left, top, right, bottom in pixels), `instruction`, `ui_type`, `group`,
    `platform`, `application` and `img_size`.
    """
    files = sorted((folder / "annotations").glob("*.json"))
    if not files:
        raise DataError(f"{folder} has no annotations/*.json")

    def application(path: Path) -> Iterator[Sample]:
        for place, entry in enumerate(_entries(path)):
            left, top, right, bottom = map(float, entry["bbox"])
            box, picture = (left, top, right, bottom), f"images/{entry['img_filename']}"
            group = f"{entry['group']} {entry['ui_type']}"
            yield _sample(folder, f"{path.stem}-{place}", picture, entry["instruction"], box, group, coordinates)

    yield from turns(map(application, files))


def _entries(path: Path) -> list[dict[str, Any]]:
    entries = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(entries, list):
        raise DataError(f"{path} is not a list of entries")
    return entries


def _sample(
    folder: Path,
    name: str,
    picture: str,
    instruction: str,
    box: tuple[float, float, float, float],
    group: str,
    coordinates: str,
) -> Sample:
    options: dict[str, Any] = {"coordinates": coordinates}
    if coordinates != "pixels":
        options["size"] = size_of(folder / picture)
    expectation = Expectation("", "point", box, options)
    check(expectation)
    question = (
        f"Where on this screenshot would you click for: {instruction}\n"
        f"Answer with one point (x, y) {UNITS[coordinates]}, and nothing else."
    )
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question}]
    return Sample(name, {"messages": [{"role": "user", "content": content}]}, expectation, group, folder)


def size_of(path: Path) -> list[int]:
    """Width and height of a picture, from its header."""
    from PIL import Image

    with Image.open(path) as picture:
        return list(picture.size)
