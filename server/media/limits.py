"""The operator's limits on what a file holds, checked inside the decoding process before the file is decoded."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pybase64
from PIL import Image
from vllm.multimodal.image import open_image
from vllm.multimodal.media import ImageMediaIO, VideoMediaIO
from vllm.multimodal.video_decoders.opencv import OpenCVVideoBackendMixin

from vllm_prune.config.media import Media

from .errors import Refused

FRAME_LIST = "video/jpeg"
"""Media type under which vLLM takes a video as JPEG files in base64 with commas between them."""


def load(media_io: Any, data: bytes, kind: str, limits: Media) -> Any:
    """Decode a file with vLLM's own media IO, once its frames and pixels are known to be few enough.

    Args:
        media_io: image, video or audio IO with the options of the request.
        data: the file; base64 text for a frame list.
        kind: media type of a data URL, else empty.
        limits: the operator's section.

    Raises:
        Refused: over a limit.
    """
    if isinstance(media_io, ImageMediaIO):
        check_image(data, limits)
    elif isinstance(media_io, VideoMediaIO):
        if kind == FRAME_LIST:
            check_frame_list(data.decode("ascii"), media_io, limits)
            return media_io.load_base64(kind, data.decode("ascii"))
        width, height, frames = video_header(data)
        check_shape(width, height, limits)
        if frames > limits.max_source_frames:
            raise Refused("frames")
        most = min(limits.max_frames, limits.max_video_pixels // (width * height))
        media_io.video_loader = capped(media_io.video_loader, most)
    return media_io.load_bytes(data)


def check_shape(width: int, height: int, limits: Media) -> None:
    """Refuse a frame that is too thin, too long or too large."""
    if min(width, height) < limits.min_side or max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise Refused("shape")
    if width * height > limits.max_pixels:
        raise Refused("pixels")


def check_image(data: bytes, limits: Media) -> int:
    """Refuse an image, or an animation, over the limits. Only headers are read.

    Returns:
        Pixels of one frame.
    """
    try:
        with open_image(BytesIO(data)) as image:
            check_shape(image.width, image.height, limits)
            if getattr(image, "is_animated", False) and getattr(image, "n_frames", 1) > limits.max_frames:
                raise Refused("frames")
            return int(image.width * image.height)
    except Image.DecompressionBombError:
        raise Refused("pixels") from None


def check_frame_list(text: str, media_io: VideoMediaIO, limits: Media) -> None:
    """Refuse a frame list over the limits; frames that vLLM would leave out do not count."""
    count = text.count(",") + 1
    if media_io.num_frames > 0:
        count = min(count, media_io.num_frames)
    if count > limits.max_frames:
        raise Refused("frames")
    pixels = 0
    for frame in text.split(",", count)[:count]:
        pixels += check_image(pybase64.b64decode(frame, validate=True), limits)
        if pixels > limits.max_video_pixels:
            raise Refused("frames")


def video_header(data: bytes) -> tuple[int, int, int]:
    """Width, height and number of frames that a video's header claims."""
    import cv2

    capture = OpenCVVideoBackendMixin.open_video_capture(data)
    fields = (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_COUNT)
    # Not released by hand: OpenCV 5 crashes when a capture that reads from memory is.
    width, height, frames = (int(capture.get(field)) for field in fields)
    return width, height, frames


def capped(loader: Any, most: int) -> Any:
    """A video loader that samples as `loader` does, and refuses more than `most` frames before decoding any."""
    base: Any = type(loader)

    class Capped(base):
        @classmethod
        def compute_frames_index_to_sample(cls, source: Any, target: Any, **kwargs: Any) -> list[int]:
            indices = super().compute_frames_index_to_sample(source, target, **kwargs)
            if len(indices) > most:
                raise Refused("frames")
            return list(indices)

    return Capped()
