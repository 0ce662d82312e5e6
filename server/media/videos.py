"""Videos: vLLM's loaders with OpenCV's decoders, and with PyAV's where OpenCV gets fewer frames out of a file.

OpenCV's wheels come without an AV1 decoder, lose their place in MPEG transport streams, and do not know
how many frames a stream without a duration has, such as a browser's recording. PyAV's FFmpeg decodes them.
"""

from __future__ import annotations

import logging
from typing import Any

from vllm.multimodal.media import VideoMediaIO
from vllm.multimodal.video_decoders.opencv import OpenCVVideoBackendMixin

from vllm_prune.config.media import Media
from vllm_prune.vllm_compat.media_budgets import RequestLimitExceeded, count_of
from vllm_prune.vllm_compat.video_capture import captures_from

from .errors import Refused
from .limits import capped, check_shape
from .pyav_capture import PyAVCapture

_SYNC = 0x47
"""First byte of each packet of a transport stream."""
logger = logging.getLogger("vllm.vllm_prune")


def load_video(media_io: VideoMediaIO, data: bytes, limits: Media) -> tuple[Any, str]:
    """Decode the sampled frames of a video file.

    As in vLLM, a file of which only some of them can be decoded is taken with these; the remark says how many.

    Returns:
        vLLM's result, and a remark for the server's log.

    Raises:
        Refused: over a limit, or no frame can be decoded.
    """
    sampled: list[int] = []
    loader, count = media_io.video_loader, count_of(media_io)
    result = _with_opencv(media_io, loader, data, limits, sampled)
    if result is None or _count(result) < len(sampled):
        other: list[int] = []
        used, count.used = count.used, 0
        second = _with_pyav(media_io, loader, data, limits, other)
        if second is not None and (result is None or _count(second) > _count(result)):
            result, sampled = second, other
        else:
            count.used = used
    if result is None:
        raise Refused("no_frames")
    decoded = _count(result)
    remark = f"{decoded} of {len(sampled)} sampled frames of a video could be decoded" if decoded < len(sampled) else ""
    return result, remark


def _count(result: Any) -> int:
    return len(result.media[0])


def _with_opencv(media_io: VideoMediaIO, loader: Any, data: bytes, limits: Media, sampled: list[int]) -> Any:
    """The result as vLLM has it, None when there is no frame in it."""
    if _is_transport_stream(data):
        # Back at the start, to which vLLM seeks after it has counted, OpenCV is a frame late or finds none.
        return None
    try:
        width, height, frames = video_header(data)
        if min(width, height, frames) <= 0:
            return None
        _check(width, height, frames, limits)
        fitting = count_of(media_io).frames(width, height)
        media_io.video_loader = capped(loader, _most(width, height, limits), fitting, sampled)
        result = media_io.load_bytes(data)
    except (Refused, RequestLimitExceeded, MemoryError):
        raise
    except Exception as error:
        if getattr(error, "code", None) == -4:
            # OpenCV's code for memory that it could not get.
            raise MemoryError from None
        logger.debug("OpenCV cannot decode a video: %.300r", error)
        return None
    return result if _count(result) else None


def _with_pyav(media_io: VideoMediaIO, loader: Any, data: bytes, limits: Media, sampled: list[int]) -> Any:
    """The result as vLLM has it, with frames from PyAV; None when there is none."""
    capture = PyAVCapture.open(data, lambda width, height: check_shape(width, height, limits), limits.max_source_frames)
    if capture is None:
        return None
    _check(capture.width, capture.height, capture.frames, limits)
    fitting = count_of(media_io).frames(capture.width, capture.height)
    media_io.video_loader = capped(loader, _most(capture.width, capture.height, limits), fitting, sampled)
    # A loader that opens the file a second time starts anew.
    with captures_from(lambda _: capture.rewound()):
        result = media_io.load_bytes(data)
    return result if _count(result) else None


def _is_transport_stream(data: bytes) -> bool:
    """Whether packets of 188 bytes follow each other, as they are, with timestamps before or checksums behind."""
    starts = ((0, 188), (0, 204), (4, 196))
    return any(len(data) > second and data[first] == data[second] == _SYNC for first, second in starts)


def _check(width: int, height: int, frames: int, limits: Media) -> None:
    check_shape(width, height, limits)
    if frames > limits.max_source_frames:
        raise Refused("frames")


def _most(width: int, height: int, limits: Media) -> int:
    return min(limits.max_frames, limits.max_video_pixels // (width * height))


def video_header(data: bytes) -> tuple[int, int, int]:
    """Width, height and number of frames that a video's header claims, by OpenCV."""
    import cv2

    capture = OpenCVVideoBackendMixin.open_video_capture(data)
    fields = (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_COUNT)
    # Not released by hand: OpenCV 5 crashes when a capture that reads from memory is.
    width, height, frames = (int(capture.get(field)) for field in fields)
    return width, height, frames
