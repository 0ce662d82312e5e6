"""Grey pictures of 16 and 32 bits against the same picture in 8."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vllm.multimodal.media import ImageMediaIO, VideoMediaIO

from vllm_prune.config.media import Media
from vllm_prune_server.media.decode_pool import DecodePool
from vllm_prune_server.media.decoders import load
from vllm_prune_server.media.errors import Refused
from vllm_prune_server.media.greys import to_eight_bits

from ..odd_files import grey_ramp, save, still

RAMP = grey_ramp()
EIGHT = save(Image.fromarray(RAMP), "PNG")
SIXTEEN = RAMP.astype(np.uint16) * 257


def seen(data: bytes, **options: Any) -> np.ndarray:
    result, _ = load(ImageMediaIO(**options), data, "", Media())
    return np.asarray(result.media)


def refusal(data: bytes) -> str:
    with pytest.raises(Refused) as error:
        seen(data)
    return error.value.reason


DEEP = {
    "16-bit png": save(Image.fromarray(SIXTEEN), "PNG"),
    "16-bit tiff": save(Image.fromarray(SIXTEEN), "TIFF"),
    "16-bit big-endian tiff": save(Image.frombytes("I;16B", (64, 64), SIXTEEN.astype(">u2").tobytes()), "TIFF"),
    "16-bit pgm": b"P5 64 64 65535\n" + SIXTEEN.astype(">u2").tobytes(),
    "32-bit tiff of levels": save(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
    "float tiff of levels": save(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
    "float tiff of shares": save(Image.fromarray((RAMP / 255).astype(np.float32)), "TIFF"),
}


@pytest.mark.parametrize("data", DEEP.values(), ids=DEEP)
def test_the_same_picture_in_more_bits_is_the_same(data: bytes) -> None:
    assert Image.open(io.BytesIO(data)).mode.startswith(("I", "F"))
    np.testing.assert_array_equal(seen(data), seen(EIGHT))


def test_all_sixteen_bit_values_are_rounded_to_the_nearest() -> None:
    values = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    levels = np.asarray(to_eight_bits(Image.fromarray(values))).astype(int)
    np.testing.assert_array_equal(levels, np.rint(values / 257))
    np.testing.assert_array_equal(levels.reshape(-1)[::257], np.arange(256))


@pytest.mark.parametrize(
    "values",
    [
        np.full((8, 8), 256, np.int32),
        np.full((8, 8), -1, np.int32),
        np.full((8, 8), 70_000, np.int32),
        np.full((8, 8), 255.5, np.float32),
        np.full((8, 8), -0.1, np.float32),
        np.full((8, 8), np.nan, np.float32),
        np.full((8, 8), np.inf, np.float32),
    ],
)
def test_values_of_no_known_range_are_refused(values: np.ndarray) -> None:
    assert refusal(save(Image.fromarray(values), "TIFF")) == "grey_range"


def test_a_transparent_value_shows_the_background() -> None:
    values = np.array([[0, 257 * 100], [257 * 200, 257 * 255]], np.uint16).repeat(4, 0).repeat(4, 1)
    deep = save(Image.fromarray(values), "PNG", transparency=257 * 100)
    flat = save(Image.fromarray((values // 257).astype(np.uint8)), "PNG", transparency=100)
    for options in ({}, {"rgba_background_color": (1, 2, 3)}):
        np.testing.assert_array_equal(seen(deep, **options), seen(flat, **options))


def test_an_operator_who_keeps_the_files_mode_gets_it() -> None:
    np.testing.assert_array_equal(seen(DEEP["16-bit png"], image_mode=None), SIXTEEN)


def test_frame_lists_of_deep_greys() -> None:
    def frames(*files: bytes) -> np.ndarray:
        text = ",".join(base64.b64encode(data).decode() for data in files)
        result, _ = load(VideoMediaIO(ImageMediaIO()), text.encode(), "video/jpeg", Media())
        return result.media[0]

    deep = frames(DEEP["16-bit png"], DEEP["16-bit tiff"], EIGHT)
    np.testing.assert_array_equal(deep, frames(EIGHT, EIGHT, EIGHT))
    with pytest.raises(Refused, match="frame_sizes"):
        frames(EIGHT, save(Image.new("RGB", (32, 64)), "PNG"))


def test_through_a_decoding_process(pool: DecodePool) -> None:
    ours, flat = pool.decode(ImageMediaIO(), DEEP["16-bit png"]), pool.decode(ImageMediaIO(), EIGHT)
    assert ours.media.tobytes() == flat.media.tobytes()
    assert ours.original_bytes == DEEP["16-bit png"]


@pytest.mark.parametrize(
    "data",
    [
        still("1", "TIFF"),
        still("LA", "PNG"),
        still("LA", "TIFF"),
        still("CMYK", "TIFF"),
        still("CMYK", "JPEG"),
        still("P", "PNG", transparency=3),
        still("P", "GIF", transparency=3),
        still("RGBA", "WEBP"),
        still("RGB", "AVIF"),
    ],
)
def test_other_modes_stay_vllms(data: bytes) -> None:
    np.testing.assert_array_equal(seen(data), np.asarray(ImageMediaIO().load_bytes(data).media))


def test_a_sixteen_bit_colour_png_is_read_in_eight() -> None:

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels.astype(np.uint16) * 257)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(seen(data), levels)
