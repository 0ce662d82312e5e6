"""Decoding of one file inside a decoding process: vLLM's own media IO, with what it lacks around it."""

from __future__ import annotations

from typing import Any

from vllm.multimodal.media import ImageMediaIO, VideoMediaIO

from vllm_prune.config.media import Media

from . import greys, videos
from .limits import FRAME_LIST, check_frame_list, check_image


def load(media_io: Any, data: bytes, kind: str, limits: Media) -> tuple[Any, str]:
    """Decode a file once its frames and pixels are known to be few enough.

    Args:
        media_io: image, video or audio IO with the options of the request.
        data: the file; base64 text for a frame list.
        kind: media type of a data URL, else empty.
        limits: the operator's section.

    Returns:
        What the media IO returns, and a remark for the server's log, mostly empty.

    Raises:
        Refused: over a limit, or nothing in it can be decoded.
    """
    if isinstance(media_io, ImageMediaIO):
        check_image(data, limits)
        greys.scale_deep_greys(media_io)
    elif isinstance(media_io, VideoMediaIO):
        greys.scale_deep_greys(media_io.image_io)
        if kind == FRAME_LIST:
            text = data.decode("ascii")
            check_frame_list(text, media_io, limits)
            return media_io.load_base64(kind, text), ""
        return videos.load_video(media_io, data, limits)
    return media_io.load_bytes(data), ""
