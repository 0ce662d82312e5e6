"""Published data sets, read from the disk as their authors lay them out. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from ..samples import DataError, Sample, checked, read_jsonl
from . import android_control, screenspot, videomme

Loader = Callable[[Path, str], Iterator[Sample]]

FORMATS: dict[str, Loader] = {
    "screenspot_v2": screenspot.version_2,
    "screenspot_pro": screenspot.pro,
    "android_control": android_control.read,
    "videomme": videomme.read,
}


def load(format: str, path: Path, limit: int | None = None, coordinates: str = "pixels") -> list[Sample]:
    """Samples of a JSONL file or of a published data set.

    Args:
        format: `jsonl`, or one of `FORMATS`.
        path: the file, or the data set's folder.
        limit: take the first so many.
        coordinates: for grounding data, what the model counts in: `pixels`, `unit` or `thousand`.

    Raises:
        DataError: unknown format, files that are missing or not as expected.
    """
    if format == "jsonl":
        return read_jsonl(path, limit)
    if format not in FORMATS:
        raise DataError(f"unknown format {format!r}; known: jsonl, {', '.join(FORMATS)}")
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; give the data set's folder, unpacked")
    try:
        samples = list(islice(FORMATS[format](path, coordinates), limit))
    except ImportError as error:
        raise DataError(f"{format} needs {error.name}: pip install 'vllm-prune[bench]'") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not laid out as {format}: {type(error).__name__} {error}") from None
    return checked(samples, str(path))


__all__ = ["FORMATS", "load"]
