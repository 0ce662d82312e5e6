"""Frames of a video by PyAV, behind the methods of `cv2.VideoCapture` that vLLM's loaders call."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import av
import av.logging
import cv2
import numpy as np

from .errors import Refused

FORMATS = "mov,mp4,matroska,webm,mpegts,mpeg,avi,flv,ogg,asf,gif,h264,hevc,m4v,mxf,ivf,obu,nut,wtv,rm"
"""Containers that hold their frames; playlists, which name other files, are not among them."""
# For names inside a file: FFmpeg must open nothing else, whatever the container.
av.logging.set_level(None)
_OPTIONS = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}


class PyAVCapture:
    """A video in memory. Made by `open`.

    Attributes:
        width, height: of a frame as it is shown, in pixels.
        frames: packets with a frame in the file, which may be fewer than its header claims.
        rate: frames per second, 0 when unknown.
    """

    def __init__(self, data: bytes, width: int, height: int, frames: int, rate: float) -> None:
        self.data, self.width, self.height, self.frames, self.rate = data, width, height, frames, rate
        self._frames = self._decoded()
        self._current: av.VideoFrame | None = None

    @classmethod
    def open(cls, data: bytes, check_shape: Callable[[int, int], None], most: int) -> PyAVCapture | None:
        """The first video stream of a file, None when no frame of it can be decoded.

        Args:
            data: the file.
            check_shape: refuses a width and height before any frame is decoded.
            most: frames in a file that is taken.

        Raises:
            Refused: more frames, or a shape that is not taken.
        """
        try:
            with _container(data) as container:
                stream = container.streams.video[0]
                if stream.codec_context.width and stream.codec_context.height:
                    check_shape(stream.codec_context.width, stream.codec_context.height)
                frames, rate = _measure(container, stream, most)
            first = next(_frames(data), None)
        except (av.error.FFmpegError, IndexError, ValueError):
            return None
        if first is None or not frames:
            return None
        width, height = (first.height, first.width) if first.rotation % 180 else (first.width, first.height)
        return cls(data, width, height, frames, rate)

    def rewound(self) -> PyAVCapture:
        """The same video from its start."""
        return PyAVCapture(self.data, self.width, self.height, self.frames, self.rate)

    def isOpened(self) -> bool:
        """Whether frames can be read."""
        return True

    def get(self, field: int) -> float:
        """A property by OpenCV's number of it, 0 when there is none."""
        return {
            cv2.CAP_PROP_FRAME_WIDTH: float(self.width),
            cv2.CAP_PROP_FRAME_HEIGHT: float(self.height),
            cv2.CAP_PROP_FRAME_COUNT: float(self.frames),
            cv2.CAP_PROP_FPS: self.rate,
        }.get(field, 0.0)

    def set(self, field: int, value: float) -> bool:
        """Go back to the first frame; there is no other way to move."""
        if field != cv2.CAP_PROP_POS_FRAMES or value != 0:
            return False
        self._frames = self._decoded()
        return True

    def grab(self) -> bool:
        """Decode the next frame; False at the end."""
        self._current = next(self._frames, None)
        return self._current is not None

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        """The frame at hand, uint8 [height, width, 3] in blue, green and red."""
        if self._current is None:
            return False, None
        turns = self._current.rotation // 90 % 4
        width, height = (self.height, self.width) if turns % 2 else (self.width, self.height)
        pixels = self._current.to_ndarray(format="bgr24", width=width, height=height)
        return True, np.ascontiguousarray(np.rot90(pixels, turns))

    def read(self) -> tuple[bool, np.ndarray | None]:
        """Decode the next frame and return it."""
        self.grab()
        return self.retrieve()

    def _decoded(self) -> Iterator[av.VideoFrame]:
        return _frames(self.data)


def _container(data: bytes) -> Any:
    return av.open(BytesIO(data), options=_OPTIONS, metadata_errors="ignore")


def _measure(container: Any, stream: Any, most: int) -> tuple[int, float]:
    """Number of frames and their rate per second; nothing is decoded."""
    frames, times = 0, list[int]()
    try:
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                frames += 1
                if packet.pts is not None:
                    times = [min([packet.pts, *times[:1]]), max([packet.pts, *times[1:]])]
            if frames > most:
                raise Refused("frames")
    except av.error.FFmpegError:
        # The file ends in the middle of a packet; what comes before it counts.
        pass
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    if not rate and frames > 1 and len(times) == 2 and times[1] > times[0]:
        rate = (frames - 1) / float((times[1] - times[0]) * stream.time_base)
    return frames, rate


def _frames(data: bytes) -> Iterator[av.VideoFrame]:
    """All frames that can be decoded; a damaged packet costs its own frame only."""
    with _container(data) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        ready: deque[av.VideoFrame] = deque()
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
                ready.extend(packet.decode())
            except StopIteration:
                break
            except av.error.FFmpegError as error:
                if isinstance(error, av.error.EOFError):
                    break
            while ready:
                yield ready.popleft()
