"""Files of every kind that a client can send as any kind of media: decoded, or refused for a reason of ours."""

from __future__ import annotations

import functools
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vllm.multimodal.media import AudioMediaIO, ImageMediaIO, VideoMediaIO

import vllm_prune.visual.frontend.video_loader  # noqa: F401
from vllm_prune_server.media.decode_pool import DecodePool
from vllm_prune_server.media.errors import MESSAGES, Refused

from ..media_files import mp4, png
from ..odd_files import (
    animation,
    bomb,
    clip,
    faststart,
    grey_ramp,
    heic,
    recording,
    save,
    session_description,
    sound_only_mp4,
    still,
    wav,
)

pytestmark = pytest.mark.slow


@functools.lru_cache(maxsize=1)
def files() -> dict[str, bytes]:
    ramp = grey_ramp()
    return {
        "animated webp": animation("WEBP", 4),
        "animated avif": animation("AVIF", 4),
        "avif": still("RGB", "AVIF"),
        "heic": heic(),
        "gif of one frame": animation("GIF", 1),
        "gif": animation("GIF", 8),
        "mp4": mp4(8, 56, 56),
        "mp4 without a picture": sound_only_mp4(),
        "mkv": clip("matroska", "libx264", 8),
        "mpegts": clip("mpegts", "libx264", 8),
        "av1": clip("mp4", "libsvtav1", 8),
        "recording": recording("libvpx", 8),
        "cut mp4": faststart()[:1200],
        "half an mp4": faststart(64)[:-400],
        "one byte": b"\0",
        "huge header": bomb(2**31 - 1),
        "one bit tiff": still("1", "TIFF"),
        "32-bit tiff": save(Image.fromarray(ramp.astype(np.int32) * 100_000), "TIFF"),
        "float tiff": save(Image.fromarray(ramp.astype(np.float32) * -1), "TIFF"),
        "la png": still("LA", "PNG"),
        "cmyk jpeg": still("CMYK", "JPEG"),
        "session description": session_description(),
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        "pdf": b"%PDF-1.4\n%%EOF\n",
        "zip": b"PK\x05\x06" + bytes(18),
        "half a png": png(64, 64)[:200],
        "sound": wav(),
    }


KINDS: dict[str, Any] = {
    "image": ImageMediaIO,
    "qwen2_vl": lambda: VideoMediaIO(ImageMediaIO(), video_backend="qwen2_vl"),
    "qwen3_vl": lambda: VideoMediaIO(ImageMediaIO(), video_backend="qwen3_vl"),
    "opencv": lambda: VideoMediaIO(ImageMediaIO(), num_frames=4, video_backend="opencv"),
    "audio": AudioMediaIO,
}
TAKEN_AS_VIDEO = {"gif", "mp4", "mkv", "mpegts", "av1", "recording", "half an mp4", "gif of one frame"}
TAKEN_AS_IMAGE = {"animated webp", "animated avif", "avif", "gif of one frame", "gif", "one bit tiff", "la png"}


# A decoding process that dies over a file is a fault of ours, though clients get a text of their own.
EXPECTED = {"", *MESSAGES} - {"crash", "decode_time"}


def outcome(pool: DecodePool, kind: str, data: bytes) -> tuple[Any, str]:
    """The result, or None and the reason of the refusal."""
    try:
        return pool.decode(KINDS[kind](), data), ""
    except Refused as error:
        return None, error.reason


@pytest.mark.parametrize("kind", KINDS)
def test_any_file_as_any_kind(pool: DecodePool, kind: str) -> None:
    pool.decode(ImageMediaIO(), png(20, 20))
    taken = set()
    for name, data in files().items():
        started = time.monotonic()
        result, reason = outcome(pool, kind, data)
        assert reason in EXPECTED, name
        if result is not None:
            taken.add(name)
            assert kind in ("image", "audio") or len(result.media[0]) > 0, name
        assert time.monotonic() - started < 25, name
    if kind == "image":
        assert taken >= TAKEN_AS_IMAGE
    elif kind != "audio":
        assert taken >= TAKEN_AS_VIDEO
    else:
        assert "sound" in taken


@pytest.mark.parametrize("kind", [name for name in KINDS if name != "audio"])
def test_a_file_cut_anywhere(pool: DecodePool, kind: str) -> None:
    for data in (faststart(), png(64, 64), clip("mpegts", "libx264", 8)):
        for share in range(1, 10):
            result, reason = outcome(pool, kind, data[: len(data) * share // 10])
            assert reason in EXPECTED
            assert result is None or kind == "image" or len(result.media[0]) > 0
