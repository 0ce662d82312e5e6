"""Each published layout, written small by the test itself."""

from __future__ import annotations

import gzip
import io
import json
import struct
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from vllm_prune.sweep import DataError
from vllm_prune.sweep.graders import grade
from vllm_prune.sweep.loaders import FORMATS, load
from vllm_prune.sweep.loaders.tfrecord import _example, features, records


def picture(path: Path, size: tuple[int, int] = (200, 100)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "white").save(path)


def screenspot_v2(folder: Path) -> None:
    for platform in ("desktop", "mobile", "web"):
        entries = []
        for kind in ("text", "icon"):
            name = f"{platform}_{kind}.png"
            picture(folder / "screenspotv2_image" / name)
            entries.append({"img_filename": name, "bbox": [20, 10, 60, 30], "instruction": f"open {kind}",
                            "data_type": kind, "data_source": "shop"})  # fmt: skip
        (folder / f"screenspot_{platform}_v2.json").write_text(json.dumps(entries))


def test_screenspot_v2(tmp_path: Path) -> None:
    screenspot_v2(tmp_path)
    found = load("screenspot_v2", tmp_path)
    assert [sample.id for sample in found] == [f"{p}-{i}" for i in (0, 1) for p in ("desktop", "mobile", "web")]
    assert found[1].group == "mobile text"
    # Their boxes are left, top, width, height.
    assert found[0].expectation.box == (20, 10, 80, 40)
    assert grade("(79, 39)", found[0].expectation)
    assert not grade("(81, 39)", found[0].expectation)
    content = found[0].body()["messages"][0]["content"]
    assert content[0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert "open text" in content[1]["text"]
    assert "pixels" in content[1]["text"]


def test_a_limit_takes_some_of_every_file(tmp_path: Path) -> None:
    screenspot_v2(tmp_path)
    assert [sample.id for sample in load("screenspot_v2", tmp_path, limit=2)] == ["desktop-0", "mobile-0"]


def test_coordinates_of_the_model(tmp_path: Path) -> None:
    screenspot_v2(tmp_path)
    sample = load("screenspot_v2", tmp_path, 1, "thousand")[0]
    assert "0 to 1000" in sample.request["messages"][0]["content"][1]["text"]
    assert grade("(390, 390)", sample.expectation)
    assert not grade("(79, 39)", sample.expectation)


def test_screenspot_pro(tmp_path: Path) -> None:
    for name in ("excel_macos", "photoshop_windows"):
        picture(tmp_path / "images" / name / "shot.png")
        entry = {"id": f"{name}_0", "img_filename": f"{name}/shot.png", "bbox": [20, 10, 80, 40],
                 "img_size": [200, 100], "instruction": "save it", "instruction_cn": "-", "ui_type": "icon",
                 "group": "Office", "platform": "macos", "application": "excel"}  # fmt: skip
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"{name}.json").write_text(json.dumps([entry]))
    found = load("screenspot_pro", tmp_path)
    assert [sample.id for sample in found] == ["excel_macos-0", "photoshop_windows-0"]
    # Theirs are left, top, right, bottom.
    assert found[0].expectation.box == (20, 10, 80, 40)
    assert found[0].group == "Office icon"
    assert found[1].body()["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png")


def example(**values: list[Any]) -> bytes:
    message = _example()()
    for name, items in values.items():
        feature = message.features.feature[name]
        (feature.int64_list if isinstance(items[0], int) else feature.bytes_list).value.extend(items)
    return bytes(message.SerializeToString())


def android_control(folder: Path) -> None:
    data = io.BytesIO()
    Image.new("RGB", (100, 200), "white").save(data, "PNG")
    for number in (7, 8):
        payload = example(
            episode_id=[number], goal=[b"turn on wifi"], screenshots=[data.getvalue()] * 3,
            screenshot_widths=[100] * 3, screenshot_heights=[200] * 3,
            actions=[b'{"action_type": "click", "x": 50, "y": 100}', b'{"action_type": "navigate_back"}'],
            step_instructions=[b"tap settings", b"go back"],
        )  # fmt: skip
        framed = struct.pack("<Q", len(payload)) + b"\0" * 4 + payload + b"\0" * 4
        with gzip.open(folder / f"android_control-0000{number}-of-00020", "wb") as file:
            file.write(framed)


def test_android_control(tmp_path: Path) -> None:
    android_control(tmp_path)
    found = load("android_control", tmp_path)
    assert [sample.id for sample in found] == ["7-0", "8-0", "7-1", "8-1"]
    first = found[0]
    text = first.request["messages"][0]["content"][1]["text"]
    assert "turn on wifi" in text
    assert "tap settings" in text
    assert first.group == "click"
    assert grade('{"action_type": "click", "x": 55, "y": 110}', first.expectation)
    assert not grade('{"action_type": "click", "x": 75, "y": 110}', first.expectation)
    assert grade('{"action_type": "navigate_back"}', found[2].expectation)
    assert first.digest() == load("android_control", tmp_path)[0].digest()


def test_android_control_takes_the_test_split(tmp_path: Path) -> None:
    android_control(tmp_path)
    (tmp_path / "splits.json").write_text(json.dumps({"train": [7], "validation": [], "test": [8]}))
    assert {sample.id for sample in load("android_control", tmp_path)} == {"8-0", "8-1"}


def test_a_record_by_its_published_bytes(tmp_path: Path) -> None:
    # {"id": int64 [5]} as TensorFlow writes it: Example.features.feature["id"].int64_list, packed.
    payload = bytes.fromhex("0a0d0a0b0a02696412051a030a0105")
    assert features(payload) == {"id": [5]}
    path = tmp_path / "records"
    with gzip.open(path, "wb") as file:
        file.write(struct.pack("<Q", len(payload)) + b"\0" * 4 + payload + b"\0" * 3)
    with pytest.raises(ValueError, match="ends inside a record"):
        list(records(path))


def videomme(folder: Path) -> None:
    rows = [
        {"video_id": f"00{i}", "duration": "short", "domain": "Knowledge", "sub_category": "Biology", "url": "-",
         "videoID": f"clip{i}", "question_id": f"00{i}-1", "task_type": "Counting", "question": "How many?",
         "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."], "answer": "C"}
        for i in (1, 2)
    ]  # fmt: skip
    (folder / "videomme").mkdir()
    (folder / "data").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "videomme" / "test-00000-of-00001.parquet")
    (folder / "data" / "clip2.mp4").write_bytes(b"not read here")


def test_videomme(tmp_path: Path) -> None:
    videomme(tmp_path)
    (sample,) = load("videomme", tmp_path)  # the other video is in a part that is not unpacked
    assert (sample.id, sample.group, sample.modalities) == ("002-1", "short", {"video"})
    content = sample.body()["messages"][0]["content"]
    assert content[0]["video_url"]["url"].startswith("data:video/mp4;base64,")
    assert "B. Two." in content[1]["text"]
    assert grade("C. Three.", sample.expectation)
    assert not grade("B", sample.expectation)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_another_layout_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no|not laid out"):
        load(name, tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        load(name, tmp_path / "missing")


def test_a_broken_entry_is_said(tmp_path: Path) -> None:
    screenspot_v2(tmp_path)
    (tmp_path / "screenspot_web_v2.json").write_text('[{"img_filename": "a.png"}]')
    with pytest.raises(DataError, match="not laid out as screenspot_v2: KeyError 'bbox'"):
        load("screenspot_v2", tmp_path)
    with pytest.raises(DataError, match="unknown format 'coco'"):
        load("coco", tmp_path)
