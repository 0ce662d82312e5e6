"""Files inside `data:` URLs (RFC 2397), in base64 of either alphabet (RFC 4648, sections 4 and 5) or percent-encoded.

Line breaks, the URL-safe alphabet and missing padding have one reading and are taken. What has two is refused: a space
between letters is as likely a plus sign that was lost in form encoding.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, unquote_to_bytes

import pybase64

from vllm_prune.config.media import Media

from .errors import Refused
from .limits import FRAME_LIST

_PLAIN = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_INNER_SPACES = re.compile(r"[^\s] +[^\s]")
_WHITESPACE = dict.fromkeys(map(ord, " \t\n\r\f\v"))
_URL_SAFE = str.maketrans("-_", "+/")
_MAX_HEADER = 1024
_ESCAPED = 3
"""Characters of a percent-encoded byte."""


def inline(url: str, settings: Media, most: int | None, is_video: bool) -> tuple[str, bytes]:
    """The media type, where it changes how the file is read, and the file of a data URL.

    Args:
        url: as the client gave it.
        settings: the operator's section.
        most: a lower limit on the file's bytes than the section's.
        is_video: whether a frame list is taken: JPEG files in base64 with commas between them. vLLM takes it apart
            as text, and that text is what it hashes.

    Raises:
        Refused: malformed, or too large; sizes are checked before anything is decoded.
    """
    header, comma, text = url[len("data:") :].partition(",")
    limit = min(settings.max_data_url_bytes, most or settings.max_data_url_bytes)
    if not comma or len(header) > _MAX_HEADER:
        raise Refused("data_url")
    kind, *parameters = (field.strip().lower() for field in unquote(header).split(";"))
    if "base64" not in parameters[-1:]:
        return "", _percent_encoded(text, limit)
    letters = 4 * ((limit + 2) // 3)
    if len(text) > (_ESCAPED if "%" in text else 2) * letters:
        raise Refused("data_url_bytes")
    text = _letters(text)
    if len(text) > letters:
        raise Refused("data_url_bytes")
    if kind == FRAME_LIST and is_video:
        return FRAME_LIST, ",".join(map(_padded, text.split(","))).encode("ascii", errors="replace")
    try:
        return "", pybase64.b64decode(_padded(text), validate=True)
    except ValueError:
        raise Refused("base64") from None


def _letters(text: str) -> str:
    """The text in base64's usual alphabet, without line breaks."""
    if _PLAIN.fullmatch(text):
        return text
    if "%" in text:
        text = unquote(text, errors="replace")
    text = text.strip()
    if " " in text and _INNER_SPACES.search(text):
        raise Refused("base64_spaces")
    return text.translate(_WHITESPACE).translate(_URL_SAFE)


def _padded(text: str) -> str:
    """The text with the padding that it lacks; padding that does not fit is the decoder's to refuse."""
    if text.endswith("="):
        return text
    if len(text) % 4 == 1:
        raise Refused("base64")
    return text + "=" * (-len(text) % 4)


def _percent_encoded(text: str, limit: int) -> bytes:
    if "%" not in text:
        # No file has only such bytes; more likely `;base64` was left out.
        raise Refused("data_url")
    if len(text) > _ESCAPED * limit:
        raise Refused("data_url_bytes")
    data = unquote_to_bytes(text)
    if len(data) > limit:
        raise Refused("data_url_bytes")
    return data
