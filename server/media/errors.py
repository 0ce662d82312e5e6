"""Why media are refused: a fixed set of reasons, and what clients are told to change.

The texts name no address, no host and nothing that a library said. Whether a name is unknown, leads to a
private address or does not answer is one text, as the difference would map the operator's network.
"""

from __future__ import annotations

from vllm.exceptions import VLLMValidationError

from vllm_prune.config.media import Media
from vllm_prune.request import current
from vllm_prune.vllm_compat.media_budgets import media_limits

_UNREACHABLE = "the media URL could not be fetched; give one on a public host that answers, or send a data: URL"
MESSAGES = {
    "url": "the media URL is malformed; give scheme, host and path, percent-encoded, without user name or password",
    "scheme": "media come from http, https or data URLs",
    "host": "media may not be fetched from this host; use one that the operator allows, or send a data: URL",
    "address": _UNREACHABLE,
    "dns": _UNREACHABLE,
    "connection": _UNREACHABLE,
    "redirect": "the media URL redirects too often or to a place that is not allowed; give the final URL",
    "status": "the host of the media URL did not answer with a file; check that the URL is right and public",
    "encoding": "the host of the media URL compresses its answer; give a URL that serves the file as it is",
    "timeout": "the media file did not arrive within {0.fetch_seconds:g} s; use a faster host or a smaller file",
    "request_bytes": "the media files of the request are together larger than {1.downloads} bytes "
    "(VLLM_MAX_MEDIA_REQUEST_DOWNLOAD_SIZE_MB of the server); send fewer or smaller ones",
    "bytes": "the media file is larger than {0.max_bytes} bytes; send a smaller one",
    "data_url": "the data: URL is malformed; write data:<type>;base64, and then the file in base64",
    "base64": "the base64 in the data: URL holds other characters, or its end is cut off; encode the whole file again",
    "base64_spaces": "the base64 in the data: URL holds spaces, which may be plus signs that form encoding turned into "
    "spaces; send the URL in JSON as it was encoded",
    "data_url_bytes": "the data: URL holds more than {0.max_data_url_bytes} bytes; send a smaller file",
    "file": "the media file cannot be read; give a path below the folder that the operator allows",
    "items": "a request may hold {0.max_items} media; send fewer, or raise `media.max_items` in the server's "
    "configuration",
    "shape": "media need sides of at least {0.min_side} pixels, at most {0.max_aspect_ratio:g} to 1; crop or pad them",
    "pixels": "the image or frame has more than {0.max_pixels} pixels; send a smaller one",
    "frames": "the media have more frames than the {0.max_frames} (of {0.max_source_frames} in a file) that are taken, "
    "or more than {0.max_video_pixels} pixels in all; send a shorter or smaller video",
    "decoded_bytes": "decoded, the media take more than {0.max_decoded_bytes} bytes; send smaller ones",
    "request_decoded_bytes": "decoded, the media of the request take more than {1.decoded} bytes "
    "(VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES of the server); send fewer or smaller ones",
    "malformed": "the media could not be decoded; send a complete file in a common format such as PNG, JPEG or MP4",
    "image_format": "the file is no picture in a format that is taken, or its start is cut off; send PNG, JPEG, WebP, "
    "GIF, AVIF or TIFF",
    "no_frames": "no frame of the video can be decoded; send MP4, WebM or MPEG-TS with H.264, H.265, VP8, VP9 or AV1, "
    "not cut off, and an animated WebP or PNG as GIF",
    "frame_sizes": "the frames of the list differ in size; scale them to one",
    "embedding": "the embedding is no tensor; send what torch.save or numpy.save writes, in base64",
    "grey_range": "the grey values are negative, not finite or above 255 in a picture of 32-bit numbers, whose range "
    "no file states; scale them to 8 or 16 bits, or floats to between 0 and 1",
    "memory": "decoding the media takes more memory than is allowed; send smaller ones",
    "decode_time": "decoding the media took longer than {0.decode_seconds:g} s; send smaller or shorter ones",
    "crash": "the media could not be decoded; re-encode them and try again",
}


class Refused(Exception):
    """Media that are not taken.

    Attributes:
        reason: a key of `MESSAGES`.
        detail: what a library said; for the server's log, never for a client.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


class MediaError(VLLMValidationError):
    """What the client gets: HTTP 400 with `param`, by vLLM's own handlers."""

    def __init__(self, reason: str, settings: Media) -> None:
        context = current()
        param = context.media_param if context is not None else "messages"
        super().__init__(MESSAGES[reason].format(settings, media_limits()), parameter=param)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[0])
