"""Every kind of content part that vLLM's parser knows: to the connector, to a gate of vLLM's, text, or refused."""

from __future__ import annotations

import inspect
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.processing import BaseProcessingInfo

from vllm_prune.vllm_compat import chat_content
from vllm_prune.vllm_compat.chat_content import ContentError, TooManyItems, acceptable
from vllm_prune.vllm_compat.signatures import entry_of, holder
from vllm_prune.vllm_compat.signatures import load as load_name

URL = "http://127.0.0.1:9/internal.png"
# What a request body can hold, as Python's JSON reader returns it.
VALUES = ["x", URL, 1, 1.5, True, [], ["x"], {}, {"url": URL}, {"url": 5}, {"data": 5}, {"data": "AAAA", "format": 5}]
PART = "parse_chat_message_content_part"
MESSAGES = holder(PART)
KINDS = sorted(load_name("MM_PARSER_MAP"))
TEXT = MESSAGES._TEXT_CONTENT_PART_TYPES
BASE = holder("BaseMultiModalContentParser.parse_image")
PARSERS = (load_name("MultiModalContentParser"), load_name("AsyncMultiModalContentParser"))
TRACKERS = (holder("MultiModalItemTracker.resolve_items"), holder("AsyncMultiModalItemTracker.resolve_items"))


@pytest.fixture(autouse=True)
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch for one test, as other tests of this process rely on vLLM as it is."""
    monkeypatch.setattr(sys.modules[TRACKERS[0].__module__], "get_video_processor_cls_name", lambda model_config: None)
    if getattr(MESSAGES, "vllm_prune_patched", False):
        return
    for parser in PARSERS:
        for name in dir(parser):
            if name.startswith("parse_"):
                monkeypatch.setattr(parser, name, getattr(parser, name))
    for kind in TRACKERS:
        for name in ("add", "resolve_items"):
            monkeypatch.setattr(kind, name, getattr(kind, name))
    monkeypatch.setattr(BaseProcessingInfo, "validate_num_items", BaseProcessingInfo.validate_num_items)
    part = entry_of(PART).home().name
    monkeypatch.setattr(MESSAGES, part, getattr(MESSAGES, part))
    monkeypatch.setattr(MESSAGES, "vllm_prune_patched", False, raising=False)
    chat_content.patch_chat_content()


class Recorder:
    """In place of the media connector: notes what it is asked for, and fetches nothing."""

    def __init__(self) -> None:
        self.urls: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("fetch_"):
            raise AttributeError(name)

        async def fetch(url: Any = None, **kwargs: Any) -> Any:
            self.urls.append(kwargs.get("video_url", url))
            return object()

        return fetch


class Info(BaseProcessingInfo):
    """The item limits of a model that takes three pictures."""

    def __init__(self, limits: dict[str, int], supported: dict[str, int | None] | None = None) -> None:
        self.limits, self.supported = limits, supported or dict.fromkeys(limits)

    def get_supported_mm_limits(self) -> dict[str, int | None]:
        return self.supported

    @property
    def allowed_mm_limits(self) -> dict[str, int]:  # type: ignore[override]
        return self.limits


def tracker(**limits: int) -> Any:
    mm_config = SimpleNamespace(enable_mm_embeds=False, media_io_kwargs=None, get_limit_per_prompt=limits.get)
    model_config = SimpleNamespace(
        hf_config=SimpleNamespace(), multimodal_config=mm_config, get_multimodal_config=lambda: mm_config,
        enable_prompt_embeds=False, is_multimodal_model=True, allowed_local_media_path="", allowed_media_domains=None,
    )  # fmt: skip
    made = TRACKERS[1](model_config)
    made.__dict__["mm_processor"] = SimpleNamespace(info=Info(limits))
    made.__dict__["model_cls"] = SimpleNamespace(get_placeholder_str=lambda modality, i: None)
    return made


async def load(part: Any, recorder: Recorder, **limits: int) -> tuple[Any, Any]:
    """Parse one part and load its items, as every route does."""
    items = tracker(**{"image": 3, "video": 3, "audio": 3, **limits})
    parser = items.create_parser()
    parser.__dict__["_connector"] = recorder
    parse = load_name(PART)
    # Passed by name, as vLLM does; 0.32 has no such parameter.
    tracking = {"mm_tracker": items} if "mm_tracker" in inspect.signature(parse).parameters else {}
    parse(part, parser, wrap_dicts=True, interleave_strings=False, **tracking)
    return await items.resolve_items()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("uuid", [None, "u"])
@pytest.mark.parametrize("typed", [True, False])
async def test_what_json_holds_reaches_the_connector_or_is_refused(kind: str, uuid: str | None, typed: bool) -> None:
    for value in VALUES:
        part = {kind: value, **({"type": kind} if typed else {}), **({"uuid": uuid} if uuid else {})}
        recorder = Recorder()
        try:
            data, _ = await load(part, recorder)
        except VLLMValidationError as error:
            text = str(error)
            assert "validation error" not in text, part
            assert "attribute" not in text, part
            continue
        for item in (item for group in (data or {}).values() for item in group):
            assert item is None or type(item) is object, part
        assert kind in TEXT or not data or recorder.urls or uuid, part
        assert all(isinstance(url, str) for url in recorder.urls), part


def test_every_method_of_vllms_parsers_is_checked() -> None:
    names = [name for name in vars(BASE) if name.startswith("parse_")]
    assert {"parse_image", "parse_image_pil", "parse_video", "parse_audio"} <= set(names)
    for cls in PARSERS:
        for name in names:
            assert hasattr(inspect.unwrap(getattr(cls, name)), "__code__")
            assert getattr(cls, name).__module__ == BASE.__module__
            assert getattr(cls, name).__wrapped__ is not None


@pytest.mark.parametrize("value", [URL, {"url": URL}, [1], "data:image/png;base64,AAAA"])
async def test_image_pil_from_json_is_refused_with_the_way_out(value: Any) -> None:
    with pytest.raises(ContentError, match=r'not taken as it is; write \{"type": "image_url"') as error:
        await load({"type": "image_pil", "image_pil": value}, Recorder())
    assert error.value.parameter == "messages"


async def test_a_picture_as_an_object_is_taken() -> None:
    picture = Image.new("RGB", (8, 8))
    data, _ = await load({"type": "image_pil", "image_pil": picture}, Recorder())
    assert data["image"] == [picture]


async def test_urls_go_to_the_connector() -> None:
    recorder = Recorder()
    await load({"type": "image_url", "image_url": {"url": URL}}, recorder)
    await load({"type": "video_url", "video_url": {"url": URL}}, recorder)
    assert recorder.urls == [URL, URL]


@pytest.mark.parametrize("kind", ["image_embeds", "video_embeds", "audio_embeds"])
async def test_embeddings_stay_behind_vllms_flag(kind: str) -> None:
    with pytest.raises(VLLMValidationError, match="--enable-mm-embeds"):
        await load({"type": kind, kind: "AAAA"}, Recorder())
    items = tracker(image=3, video=3, audio=3)
    items.model_config.multimodal_config.enable_mm_embeds = True
    recorder = Recorder()
    parser = items.create_parser()
    parser.__dict__["_connector"] = recorder
    getattr(parser, f"parse_{kind}")("AAAA")
    (item,) = items._items_by_modality[kind]
    await item()
    assert recorder.urls == ["AAAA"]


async def test_a_part_without_content_needs_a_uuid() -> None:
    with pytest.raises(ContentError, match="is empty"):
        await load({"type": "image_url", "image_url": {"url": ""}}, Recorder())
    data, uuids = await load({"type": "image_url", "image_url": None, "uuid": "u"}, Recorder())
    assert (data, uuids) == ({"image": [None]}, {"image": ["u"]})


async def test_the_refusal_counts_all_items_and_loads_none() -> None:
    items, recorder = tracker(image=3, video=2), Recorder()
    parser = items.create_parser()
    parser.__dict__["_connector"] = recorder
    for _ in range(7):
        parser.parse_image(URL)
    with pytest.raises(TooManyItems, match=r"holds 7 parts of type image, and at most 3 are taken; send fewer"):
        await items.resolve_items()
    assert recorder.urls == []


@pytest.mark.parametrize(
    ("allowed", "supported", "text"),
    [
        (3, None, "at most 3 are taken; send fewer, or raise the server's --limit-mm-per-prompt"),
        (3, 5, "at most 3 are taken; send fewer, or raise the server's --limit-mm-per-prompt"),
        (3, 3, "at most 3 are taken; send fewer"),
        (0, None, "none is taken; leave them out, or raise the server's --limit-mm-per-prompt"),
        (0, 0, "none is taken; leave them out"),
    ],
)
def test_the_flag_is_named_where_it_helps(allowed: int, supported: int | None, text: str) -> None:
    with pytest.raises(TooManyItems) as error:
        Info({"image": allowed}, {"image": supported}).validate_num_items("image", 4)
    assert str(error.value) == f"the prompt holds 4 parts of type image, and {text}"
    Info({"image": 4}, {"image": 4}).validate_num_items("image", 4)


async def test_the_operators_limit_counts_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_content, "_max_items", lambda: 2)
    items, recorder = tracker(image=9), Recorder()
    parser = items.create_parser()
    parser.__dict__["_connector"] = recorder
    for _ in range(5):
        parser.parse_image(URL)
    with pytest.raises(ContentError, match=r"holds 5 media, and at most 2 are taken; .* `media.max_items`"):
        await items.resolve_items()
    assert recorder.urls == []


def test_arguments_that_nobody_knows_are_for_objects_only() -> None:
    assert not any(acceptable("video_frames", value) for value in VALUES)
    assert acceptable("video_frames", object())


def test_patching_twice_wraps_once() -> None:
    before = PARSERS[1].parse_image
    chat_content.patch_chat_content()
    assert PARSERS[1].parse_image is before
