"""What crosses the border between the server and a decoding process: sealed memory, and headers of plain JSON.

The server trusts nothing that comes back. Memory is accepted only when sealed, as a process that could still
shrink it would crash the server; headers are JSON; sizes are checked before anything is built from them.
"""

from __future__ import annotations

import fcntl
import json
import math
import mmap
import os
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from vllm.multimodal.media import MediaWithBytes

from .errors import Refused

ALIGNMENT = 64
MESSAGE = 1 << 16
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_DTYPES = frozenset({"uint8", "int16", "int32", "float32", "float64"})
_MAX_HEADER = 16 << 20


def seal(parts: Sequence[bytes | memoryview]) -> int:
    """Put parts one after another into memory that nobody can change any more.

    Returns:
        Its file descriptor, for the caller to close.
    """
    descriptor = os.memfd_create("vllm-prune-media", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for part in parts:
            rest = memoryview(part).cast("B")
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def view(descriptor: int, most: int) -> mmap.mmap:
    """Map sealed memory; what the caller writes stays private. Takes the descriptor over.

    Raises:
        Refused: not sealed, empty, or larger than `most` bytes.
    """
    try:
        size = os.fstat(descriptor).st_size
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS or not size:
            raise Refused("crash")
        if size > most:
            raise Refused("decoded_bytes")
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
    except OSError:
        raise Refused("crash") from None
    finally:
        os.close(descriptor)


def send(channel: socket.socket, message: bytes, descriptor: int | None = None) -> None:
    """One message, with one descriptor or none."""
    socket.send_fds(channel, [message], [] if descriptor is None else [descriptor])


def receive(channel: socket.socket) -> tuple[bytes, int | None]:
    """The next message, empty when the other side is gone, and its descriptor."""
    message, descriptors, _, _ = socket.recv_fds(channel, MESSAGE, 4)
    for extra in descriptors[1:]:
        os.close(extra)
    return message, descriptors[0] if descriptors else None


def pack(result: Any) -> int:
    """Seal what vLLM's media IO returned: an image, or an array with metadata or a rate, wrapped or not."""
    wrapped = isinstance(result, MediaWithBytes)
    media = result.media if wrapped else result
    header: dict[str, Any] = {"wrapped": wrapped, "io_config": result.io_config if wrapped else None}
    if isinstance(media, Image.Image):
        header |= _describe_image(media)
        payload: bytes | memoryview = media.tobytes()
    else:
        array, extra = media
        if not isinstance(array, np.ndarray):
            raise TypeError("only arrays in main memory cross the border")
        array = np.ascontiguousarray(array)
        header |= {"kind": "array", "dtype": array.dtype.name, "shape": array.shape, "extra": extra}
        payload = array.reshape(-1).data if array.size else b""
    text = json.dumps(header, default=_plain).encode()
    text = text.ljust(-(-(len(text) + 8) // ALIGNMENT) * ALIGNMENT - 8)
    return seal([len(text).to_bytes(8, "little"), text, payload])


def _describe_image(image: Image.Image) -> dict[str, Any]:
    palette, transparency = image.palette, image.info.get("transparency")
    if isinstance(transparency, bytes):
        transparency = {"bytes": transparency.hex()}
    return {
        "kind": "image",
        "mode": image.mode,
        "size": image.size,
        "palette": None if palette is None else [palette.mode, bytes(palette.palette).hex()],
        "transparency": transparency,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} does not cross the border")


def unpack(memory: mmap.mmap, original: bytes) -> Any:
    """Rebuild what the media IO returned, around the encoded file.

    Raises:
        Refused: a header that does not fit the memory.
    """
    try:
        length = int.from_bytes(memory[:8], "little")
        if length > min(_MAX_HEADER, len(memory) - 8):
            raise ValueError("header too long")
        header = json.loads(memory[8 : 8 + length])
        build = _build_image if header["kind"] == "image" else _build_array
        media = build(header, memory, 8 + length)
        if not header["wrapped"]:
            return media
        config = header["io_config"]
        if config is not None:
            config = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
        return MediaWithBytes(media, original, config)
    except (ValueError, TypeError, KeyError, LookupError, AttributeError, OverflowError, MemoryError):
        raise Refused("crash") from None


def _build_image(header: dict[str, Any], memory: mmap.mmap, start: int) -> Image.Image:
    width, height = (int(side) for side in header["size"])
    mode = str(header["mode"])
    with memoryview(memory) as whole, whole[start:] as payload:
        # One bit a pixel is the least that any mode takes; PIL allocates before it counts.
        if width * height > 8 * len(payload):
            raise ValueError("payload too short")
        image = Image.frombytes(mode, (width, height), payload)
    if header["palette"] is not None:
        palette_mode, palette = header["palette"]
        image.putpalette(bytes.fromhex(palette), palette_mode)
    transparency = header["transparency"]
    if transparency is not None:
        value = bytes.fromhex(transparency["bytes"]) if isinstance(transparency, dict) else transparency
        image.info["transparency"] = tuple(value) if isinstance(value, list) else value
    return image


def _build_array(header: dict[str, Any], memory: mmap.mmap, start: int) -> tuple[np.ndarray, Any]:
    if header["dtype"] not in _DTYPES:
        raise ValueError("unexpected dtype")
    shape = tuple(int(side) for side in header["shape"])
    array: np.ndarray = np.frombuffer(memory, dtype=header["dtype"], offset=start)
    if any(side < 0 for side in shape) or math.prod(shape) != array.size:
        raise ValueError("shape and payload differ")
    return array.reshape(shape), header["extra"]
