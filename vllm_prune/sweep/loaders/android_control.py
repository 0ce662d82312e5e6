"""AndroidControl (arXiv 2406.03679): which action comes next, given a goal, a step instruction and a screenshot."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..graders import Expectation, check, register
from ..samples import DataError, Sample
from .order import turns
from .tfrecord import features, records

NEAR = 0.14
"""How far a click may be from the recorded one, as a share of the screen (the rule of AITW, arXiv 2307.10088)."""

WITH_POINT = ("click", "long_press")
WITH_WORD = {"scroll": "direction", "open_app": "app_name", "input_text": "text"}
ACTIONS = """Answer with one JSON object, and nothing else:
{"action_type": "click" or "long_press", "x": ..., "y": ...}, {"action_type": "scroll", "direction": "up", "down",
"left" or "right"}, {"action_type": "open_app", "app_name": ...}, {"action_type": "input_text", "text": ...},
{"action_type": "navigate_home"}, {"action_type": "navigate_back"} or {"action_type": "wait"}. """
UNITS = {
    "pixels": "x and y are pixels of the screenshot.",
    "unit": "x and y are fractions of its width and height.",
    "thousand": "x and y are on a scale from 0 to 1000.",
}


@register("android_action", options=("coordinates", "size"))
def android_action(answer: str, expectation: Expectation) -> bool:
    """The same type of action, with the same word or a point within 14% of the screen."""
    match = re.search(r"\{[^{}]*\}", answer)
    try:
        action = json.loads(match[0]) if match else None
    except ValueError:
        return False
    wanted = expectation.expected
    if action is None or action.get("action_type") != wanted["action_type"]:
        return False
    if word := WITH_WORD.get(wanted["action_type"]):
        return str(action.get(word, "")).strip().casefold() == str(wanted[word]).strip().casefold()
    return wanted["action_type"] not in WITH_POINT or _near(action, expectation)


def _near(action: dict[str, Any], expectation: Expectation) -> bool:
    wide, high = expectation.options["size"]
    full = {"pixels": (wide, high), "unit": (1, 1), "thousand": (1000, 1000)}[expectation.options["coordinates"]]
    try:
        x, y = float(action["x"]) / full[0], float(action["y"]) / full[1]
    except (KeyError, TypeError, ValueError):
        return False
    wanted = expectation.expected
    return bool(((x - wanted["x"] / wide) ** 2 + (y - wanted["y"] / high) ** 2) ** 0.5 <= NEAR)


def read(folder: Path, coordinates: str) -> Iterator[Sample]:
    """AndroidControl: gzipped TFRecord files `android_control-?????-of-?????`, one episode per record.

    Where `splits.json` is there, only episodes of its `test` list are read. Each step becomes a sample; the published
    accuracy counts clicks inside the element's box, this one within 14% of the recorded point.
    """
    if coordinates not in UNITS:
        raise DataError(f"coordinates are one of {', '.join(UNITS)}, not {coordinates!r}")
    files = sorted(folder.glob("android_control-*-of-*"))
    if not files:
        raise DataError(f"{folder} has no android_control-?????-of-????? files")
    splits = folder / "splits.json"
    test = set(json.loads(splits.read_text())["test"]) if splits.is_file() else None
    yield from turns(_episodes(path, test, coordinates) for path in files)


def _episodes(path: Path, test: set[int] | None, coordinates: str) -> Iterator[Sample]:
    for payload in records(path):
        episode = features(payload)
        (number,) = episode["episode_id"]
        if test is None or number in test:
            yield from _steps(number, episode, coordinates)


def _steps(number: int, episode: dict[str, list[Any]], coordinates: str) -> Iterator[Sample]:
    goal = episode["goal"][0].decode()
    # One more screenshot than actions: the last one shows the result.
    for step, text in enumerate(episode["actions"]):
        action, instruction = json.loads(text), episode["step_instructions"][step].decode()
        size = [episode["screenshot_widths"][step], episode["screenshot_heights"][step]]
        picture = "data:image/png;base64," + base64.b64encode(episode["screenshots"][step]).decode()
        question = f"Goal: {goal}\nNext step: {instruction}\n{ACTIONS}{UNITS[coordinates]}"
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question}]
        expectation = Expectation(action, "android_action", None, {"coordinates": coordinates, "size": size})
        check(expectation)
        request = {"messages": [{"role": "user", "content": content}], "max_tokens": 128}
        yield Sample(f"{number}-{step}", request, expectation, action["action_type"])
