"""`OpenCVVideoBackendMixin.open_video_capture`: where vLLM's video loaders get their frames from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vllm.multimodal.video_decoders.opencv import OpenCVVideoBackendMixin


@contextmanager
def captures_from(open_capture: Callable[[bytes], Any]) -> Iterator[None]:
    """Let vLLM's loaders, which sample and stack frames, read them from another capture than OpenCV's.

    For a process that decodes one file at a time: the class is changed for all threads.

    Args:
        open_capture: from a file to an object with the methods of `cv2.VideoCapture` that vLLM calls.
    """
    original = OpenCVVideoBackendMixin.__dict__["open_video_capture"]
    OpenCVVideoBackendMixin.open_video_capture = classmethod(lambda cls, data: open_capture(data))
    try:
        yield
    finally:
        OpenCVVideoBackendMixin.open_video_capture = original
