"""Real media files at the edges: bombs, animations, endless videos, odd modes."""

from __future__ import annotations

import base64
import io
import struct
import wave
import zlib
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image

from .media_files import pixels


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image file."""
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def still(mode: str, kind: str, height: int = 60, width: int = 90, **options: Any) -> bytes:
    """A picture in a mode and a format of PIL's."""
    image = Image.fromarray(pixels(height, width, 3))
    if mode in ("RGBA", "LA"):
        image = image.convert("RGBA")
        image.putalpha(Image.linear_gradient("L").resize((width, height)))
    return save(image.convert(mode), kind, **options)


def bomb(side: int) -> bytes:
    """A PNG of `side` x `side` pixels: the header claims them, a few bytes of compressed zeros follow."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def flat_png(side: int) -> bytes:
    """A complete PNG of one colour: a few kilobytes a megapixel, and all of them have to be decoded."""
    return save(Image.new("RGB", (side, side), (9, 9, 9)), "PNG", compress_level=1)


def animation(kind: str, frames: int) -> bytes:
    """GIF, PNG or WEBP with frames that differ."""
    pictures = [Image.fromarray(np.full((16, 16, 3), 5 * i % 251, dtype=np.uint8)) for i in range(frames)]
    return save(pictures[0], kind, save_all=True, append_images=pictures[1:], duration=40)


def endless_mp4(frames: int, rate: int, height: int = 32, width: int = 32, codec: str = "mpeg4") -> bytes:
    """A video of many frames that takes little time and room: one key frame of one colour, repeated."""
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, rate)
        frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 99, dtype=np.uint8), format="rgb24")
        body = bytes([*stream.encode(frame), *stream.encode()][0])
        for i in range(frames):
            packet = av.Packet(body)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, rate), True
            packet.pts = packet.dts = i
            packet.duration = 1
            container.mux(packet)
    return data.getvalue()


def slow_mp4() -> bytes:
    """Some megabytes that take seconds to decode, within the default limits."""
    return endless_mp4(6_000, 120, 720, 1280, "libx264")


def frame_list(frames: int, height: int = 32, width: int = 48) -> str:
    """The text of a `video/jpeg` data URL: JPEG files in base64 with commas between them."""
    files = [save(Image.fromarray(pixels(height, width, seed)), "JPEG") for seed in range(min(frames, 8))]
    return ",".join(base64.b64encode(files[i % len(files)]).decode() for i in range(frames))


def wav(seconds: float = 0.2, rate: int = 16_000) -> bytes:
    """A tone."""
    data = io.BytesIO()
    samples = (np.sin(np.arange(int(seconds * rate)) / 10) * 12_000).astype("<i2")
    with wave.open(data, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return data.getvalue()


def clip(
    container: str = "mp4",
    codec: str = "libx264",
    frames: int = 16,
    rate: int = 4,
    height: int = 64,
    width: int = 96,
    options: dict[str, str] | None = None,
) -> bytes:
    """A video whose frame i is grey, a little lighter than frame i - 1; in any container and codec of FFmpeg's."""
    data = io.BytesIO()
    with av.open(data, "w", format=container, options=options or {}) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            pixels_of_frame = np.full((height, width, 3), 40 + 10 * (i % 20), dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels_of_frame, format="rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return data.getvalue()


class _Pipe(io.RawIOBase):
    """A sink that cannot go back, so that a container's header keeps no duration."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, chunk: Any) -> int:
        self.data += bytes(chunk)
        return len(chunk)


def recording(codec: str = "libvpx", frames: int = 16) -> bytes:
    """A WebM without a duration, as a browser's recorder writes it."""
    sink = _Pipe()
    with av.open(sink, "w", format="webm", options={"live": "1"}) as file:
        stream = file.add_stream(codec, rate=4)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 40 + 10 * i, dtype=np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return bytes(sink.data)


def sound_only_mp4() -> bytes:
    """An MP4 file with a sound and no picture."""
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=16_000)
        for i in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
            frame.rate, frame.pts = 16_000, 1024 * i
            for packet in stream.encode(frame):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return data.getvalue()


def faststart(frames: int = 16) -> bytes:
    """An MP4 file with its header first, so that it can be cut anywhere behind it."""
    data = clip(frames=frames)
    start = data.index(b"moov") - 4
    (length,) = struct.unpack_from(">I", data, start)
    header, rest = bytearray(data[start : start + length]), data[:start] + data[start + length :]
    split = rest.index(b"mdat") - 4
    # The chunks have moved behind the header by its length.
    table = header.index(b"stco") + 8
    (count,) = struct.unpack_from(">I", header, table)
    for place in range(table + 4, table + 4 + 4 * count, 4):
        struct.pack_into(">I", header, place, struct.unpack_from(">I", header, place)[0] + length)
    return bytes(rest[:split] + header + rest[split:])


def session_description() -> bytes:
    """An SDP file: no video, but where to listen for one."""
    return (
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    )


def heic() -> bytes:
    """The start of a HEIC picture, which Pillow does not read."""
    return b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(200)


def grey_ramp(side: int = 64) -> np.ndarray:
    """Grey levels that all differ from row to row, uint8 [side, side]."""
    return np.arange(side * side, dtype=np.uint32).reshape(side, side).astype(np.uint8)
