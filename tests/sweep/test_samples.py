"""The JSONL format: what is read, what is filled in, what is refused."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vllm_prune.sweep import DataError, read_jsonl
from vllm_prune.sweep.loaders import FORMATS
from vllm_prune.sweep.samples import OWN_KEYS

PICTURE = {"type": "image_url", "image_url": {"url": "shots/a.png"}}


def line(**changed: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": [PICTURE, {"type": "text", "text": "what is it?"}]}]
    return {"messages": messages, "expected": "red", **changed}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data" / "shots").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "data" / "shots" / "a.png")
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "secret.png")
    return tmp_path / "data"


def written(folder: Path, *lines: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines) + "\n")
    return path


def test_a_file_becomes_a_data_url(folder: Path) -> None:
    (sample,) = read_jsonl(written(folder, line(id="one", group="colours", top_p=0.5)))
    body = sample.body()
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    assert base64.b64decode(url.removeprefix("data:image/png;base64,")) == (folder / "shots" / "a.png").read_bytes()
    assert {key: value for key, value in body.items() if key != "messages"} == {
        "temperature": 0, "seed": 0, "max_tokens": 64, "top_p": 0.5,
    }  # fmt: skip
    assert (sample.id, sample.group, sample.modalities) == ("one", "colours", {"image"})
    # The sample itself stays small: reading a data set does not read its pictures.
    assert sample.request["messages"][0]["content"][0] == PICTURE


def test_urls_pass_and_own_settings_stay(folder: Path) -> None:
    remote = {"type": "video_url", "video_url": {"url": "https://example.org/a.mp4"}}
    request = line(messages=[{"role": "user", "content": [remote]}], temperature=0.7, max_completion_tokens=9)
    body = read_jsonl(written(folder, request))[0].body()
    assert body["messages"][0]["content"][0] == remote
    assert (body["temperature"], body["max_completion_tokens"], "max_tokens" in body) == (0.7, 9, False)


def test_limit_and_line_numbers(folder: Path) -> None:
    path = written(folder, line(), "", line(), line())
    assert [sample.id for sample in read_jsonl(path)] == ["1", "3", "4"]
    assert len(read_jsonl(path, limit=2)) == 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "data.jsonl:2: Expecting"),
        ([1], "data.jsonl:2: a line is a JSON object"),
        ({"expected": "x"}, "data.jsonl:2: a line is a JSON object with messages"),
        ({"messages": line()["messages"]}, "data.jsonl:2: expected is missing"),
        (line(pruning=None, model="m"), "remove model, pruning"),
        (line(stream=True), "remove stream"),
        (line(grader="guess"), "unknown grader 'guess'"),
        (line(grader="point"), "needs a box"),
        (line(grader="point", box=[3, 0, 1, 1]), "box is"),
        (line(grader="point", box=[0, 0, 1, "1"]), "box is"),
        (line(messages=[{"role": "user", "content": [{**PICTURE, "image_url": {"url": "b.png"}}]}]), "no such file"),
        (line(messages=[{"role": "user", "content": [{**PICTURE, "image_url": {"url": "../secret.png"}}]}]), "inside"),
        (line(messages=[{"role": "user", "content": [{**PICTURE, "image_url": {"url": "/etc/passwd"}}]}]), "inside"),
        (line(messages=["hello"]), "data.jsonl:2"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(folder: Path, bad: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_jsonl(written(folder, line(), bad))


def test_no_samples_and_equal_ids_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="no samples"):
        read_jsonl(written(folder))
    with pytest.raises(DataError, match="1 ids occur twice"):
        read_jsonl(written(folder, line(id="a"), line(id="a")))
    with pytest.raises(DataError, match="cannot read"):
        read_jsonl(folder / "missing.jsonl")


def test_the_digest_follows_request_answer_and_file(folder: Path) -> None:
    def digest(**changed: Any) -> str:
        return read_jsonl(written(folder, line(id="a", **changed)))[0].digest()

    first = digest()
    assert digest() == first
    assert len({first, digest(expected="blue"), digest(top_p=0.5), digest(grader="contains")}) == 4
    Image.new("RGB", (9, 9), "red").save(folder / "shots" / "a.png")
    assert digest() != first


def test_a_file_of_another_kind_is_refused_when_it_is_sent(folder: Path) -> None:
    (folder / "notes.txt").write_text("x")
    request = line(messages=[{"role": "user", "content": [{**PICTURE, "image_url": {"url": "notes.txt"}}]}])
    (sample,) = read_jsonl(written(folder, request))
    with pytest.raises(DataError, match="neither an image nor a video"):
        sample.body()


def test_the_documented_line_is_read(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "benchmarks" / "datasets" / "README.md"
    (text,) = re.findall(r"```json\n(.*?)```", page.read_text(), flags=re.DOTALL)
    (tmp_path / "shots").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "shots" / "1.png")
    (sample,) = read_jsonl(written(tmp_path, text.strip()))
    assert (sample.id, sample.group, sample.expectation.accepted) == ("save-1", "buttons", ["K"])
    listed = set(re.findall(r"^\| `(\w+)` \|", page.read_text(), flags=re.MULTILINE))
    assert set(OWN_KEYS) - {"id"} <= listed | {"messages"}
    assert {"exact", "contains", "choice", "number", "point", "android_action"} <= listed
    assert set(FORMATS) <= listed
