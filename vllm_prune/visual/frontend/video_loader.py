"""A video of fewer frames than one temporal patch.

vLLM 0.32's loader for the Qwen2-VL family divides by the number of frames it rounds down to, which is zero
for a single frame, and answers 500. The registered subclass takes such videos as they are; the image
processor then repeats the frame, as it does for any odd count.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from vllm.multimodal.video import VIDEO_LOADER_REGISTRY, Qwen2VLVideoBackend
from vllm.multimodal.video_decoders.opencv import OpenCVVideoBackendMixin


@VIDEO_LOADER_REGISTRY.register("qwen2_vl", video_processor="Qwen2VLVideoProcessor")
class ShortVideoBackend(Qwen2VLVideoBackend):
    """vLLM's loader, with videos shorter than `temporal_patch_size` kept whole."""

    @classmethod
    def compute_frames_index_to_sample(cls, source: Any, target: Any, **kwargs: Any) -> list[int]:
        """Indices of the frames to decode."""
        total = int(source.total_frames_num)
        if 0 < total < kwargs.get("temporal_patch_size", 2):
            return list(range(total))
        if total == 0:
            raise ValueError("the video has no frames")
        return list(super().compute_frames_index_to_sample(source, target, **kwargs))

    @classmethod
    def create_hf_metadata(cls, source: Any, valid_frame_indices: list[int], video_backend: str) -> dict[str, Any]:
        """Metadata for the processor, which must not sample a short video again."""
        metadata = dict(super().create_hf_metadata(source, valid_frame_indices, video_backend))
        if len(valid_frame_indices) < 2:
            metadata["do_sample_frames"] = False
        return metadata

    @classmethod
    def load_bytes(cls, data: bytes, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Frames [n, height, width, 3] and metadata of a video file."""
        frames, metadata = super().load_bytes(data, *args, **kwargs)
        if len(frames) == 0 and metadata["total_num_frames"] == 1:
            frames, metadata["frames_indices"] = _only_frame(data), [0]
        return frames, metadata


def _only_frame(data: bytes) -> np.ndarray:
    """The frame of a one-frame file, uint8 [1, height, width, 3].

    vLLM seeks to the end to count frames, and the decoder does not find its way back to an only frame.
    """
    read, frame = OpenCVVideoBackendMixin.open_video_capture(data).read()
    if not read:
        raise ValueError("the video has no frame that can be decoded")
    return np.ascontiguousarray(frame[None, ..., ::-1])
