"""The operator's limits on what a file holds, checked inside the decoding process before the file is decoded."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pybase64
from PIL import Image, UnidentifiedImageError
from vllm.multimodal.image import open_image
from vllm.multimodal.media import VideoMediaIO

from vllm_prune.config.media import Media

from .errors import Refused

FRAME_LIST = "video/jpeg"
"""Media type under which vLLM takes a video as JPEG files in base64 with commas between them."""


def check_shape(width: int, height: int, limits: Media) -> None:
    """Refuse a frame that is too thin, too long or too large."""
    if min(width, height) < limits.min_side or max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise Refused("shape")
    if width * height > limits.max_pixels:
        raise Refused("pixels")


def check_image(data: bytes, limits: Media) -> tuple[int, int]:
    """Refuse an image, or an animation, over the limits. Only headers are read.

    Returns:
        Width and height of one frame in pixels.
    """
    try:
        with open_image(BytesIO(data)) as image:
            check_shape(image.width, image.height, limits)
            if getattr(image, "is_animated", False) and getattr(image, "n_frames", 1) > limits.max_frames:
                raise Refused("frames")
            return image.width, image.height
    except Image.DecompressionBombError:
        raise Refused("pixels") from None
    except UnidentifiedImageError:
        raise Refused("image_format") from None


def check_frame_list(text: str, media_io: VideoMediaIO, limits: Media) -> None:
    """Refuse a frame list over the limits; frames that vLLM would leave out do not count."""
    count = text.count(",") + 1
    if media_io.num_frames > 0:
        count = min(count, media_io.num_frames)
    if count > limits.max_frames:
        raise Refused("frames")
    pixels, sizes = 0, set()
    for frame in text.split(",", count)[:count]:
        width, height = check_image(pybase64.b64decode(frame, validate=True), limits)
        pixels += width * height
        sizes.add((width, height))
        if pixels > limits.max_video_pixels:
            raise Refused("frames")
    if len(sizes) > 1:
        raise Refused("frame_sizes")


def capped(loader: Any, most: int, fitting: int | None, sampled: list[int]) -> Any:
    """A video loader that samples as `loader` does, and refuses too many frames before decoding any.

    Args:
        loader: vLLM's.
        most: frames that may be sampled by the operator's limits.
        fitting: frames that the request may still decode by vLLM's limit, None for no limit.
        sampled: takes the indices of the sampled frames.
    """
    base: Any = type(loader)

    class Capped(base):
        @classmethod
        def compute_frames_index_to_sample(cls, source: Any, target: Any, **kwargs: Any) -> list[int]:
            indices = list(super().compute_frames_index_to_sample(source, target, **kwargs))
            if len(indices) > most:
                raise Refused("frames")
            if fitting is not None and len(indices) > fitting:
                raise Refused("request_decoded_bytes")
            sampled[:] = indices
            return indices

    return Capped()
