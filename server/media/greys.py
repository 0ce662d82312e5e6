"""Grey pictures of more than eight bits a pixel, scaled to eight.

Pillow cuts their values off at 255 when it converts them to RGB, so that most turn white.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from vllm.multimodal.media import ImageMediaIO

from vllm_prune.vllm_compat.image_media_io import convert_after

from .errors import Refused

SIXTEEN_BITS = 65_535
_PGM = (b"P2", b"P5")
_PER_LEVEL = 257
"""Steps of 16 bits in one step of 8: the largest values are 65535 and 255."""


def scale_deep_greys(media_io: ImageMediaIO) -> None:
    """Let a media IO scale deep greys before it converts them; one that keeps the file's mode is left as it is."""
    if media_io.image_mode is not None:
        convert_after(media_io, to_eight_bits)


def to_eight_bits(image: Image.Image, data: bytes = b"") -> Image.Image:
    """A picture with at most eight bits a channel.

    Values of 16 bits are divided by 257 and rounded, which undoes a widening of 8 bits to 16 exactly. Integers of 32
    bits and floats have no range that a file states: up to 255 they are taken for levels of 8 bits, as Pillow does,
    and floats up to 1 for shares of white.

    Args:
        image: decoded, in any mode.
        data: its file.

    Raises:
        Refused: values of an unknown range.
    """
    if image.mode.startswith("I;16"):
        return _grey(image, np.asarray(image).astype(np.uint32))
    if image.mode not in ("I", "F"):
        return image
    values = np.asarray(image)
    if not np.isfinite(values).all() or values.min() < 0:
        raise Refused("grey_range")
    largest = values.max()
    if image.mode == "I" and data[:2] in _PGM and largest <= SIXTEEN_BITS:
        # Pillow has scaled them from the range in the file's header to 16 bits.
        return _grey(image, values.astype(np.uint32))
    if image.mode == "F" and largest <= 1:
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if largest <= 255:
        return Image.fromarray(np.rint(values).astype(np.uint8))
    raise Refused("grey_range")


def _grey(image: Image.Image, values: np.ndarray) -> Image.Image:
    """Eight bits from sixteen; a value that the file declares transparent becomes an alpha channel."""
    levels = ((values + _PER_LEVEL // 2) // _PER_LEVEL).astype(np.uint8)
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return Image.fromarray(levels)
    alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
    return Image.merge("LA", [Image.fromarray(levels), Image.fromarray(alpha)])
