"""Deterministic images and videos with structure, and requests made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"

Video = tuple[np.ndarray, dict[str, Any]]
Visual = dict[str, Any] | None


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """A colour ramp with flat boxes and one noisy box, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    rows, cols = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    ramp = 40 + 90 * rows * rng.random(3) + 90 * cols * rng.random(3)
    canvas = np.broadcast_to(ramp, (height, width, 3)).astype(np.uint8).copy()
    for i in range(6):
        top, left = int(rng.integers(0, height * 3 // 4)), int(rng.integers(0, width * 3 // 4))
        box = canvas[top : top + height // 3, left : left + width // 3]
        box[:] = rng.integers(0, 255, 3 if i else box.shape, dtype=np.uint8)
    return canvas


def image(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture as PIL image."""
    return Image.fromarray(picture(height, width, seed))


def video(frames: int, height: int, width: int, fps: float = 30.0, stride: int = 15, seed: int = 0) -> Video:
    """Every `stride`-th frame of a film: a box moves over a still background, with a cut at every fifth frame.

    Cuts and stills matter: on evenly random frames an energy split is nearly even, and errors hide.
    """
    rng = np.random.default_rng(seed + 1000)
    shots = []
    for i in range(frames):
        if i % 5 == 0:
            background = picture(height, width, seed + i)
        frame = background.copy()
        top, left = (i * height // 7) % (height * 3 // 4), (i * width // 5) % (width * 3 // 4)
        frame[top : top + height // 4, left : left + width // 4] = rng.integers(0, 255, 3, dtype=np.uint8)
        shots.append(frame)
    total = frames * stride
    metadata = {
        "fps": float(fps),
        "total_num_frames": total,
        "duration": total / fps,
        "frames_indices": [i * stride for i in range(frames)],
        "video_backend": "opencv",
        "do_sample_frames": False,
    }
    return np.stack(shots), metadata


@dataclass(frozen=True, eq=False)
class Request:
    """One request as a test means it.

    Attributes:
        prompt: text with one pad token per media item, in prompt order of each modality.
        images, videos: the media.
        visual: `pruning.visual` object, None for no budget.
        order: modality of each medium in prompt order, for models that take all of them as one modality.
    """

    prompt: str
    images: tuple[Image.Image, ...] = ()
    videos: tuple[Video, ...] = ()
    visual: Visual = None
    order: tuple[str, ...] = ()

    def within(self, visual: Visual) -> Request:
        """The same request under another budget."""
        return replace(self, visual=visual)

    def for_vllm(self) -> dict[str, Any]:
        """Prompt dict of `LLM.generate`."""
        data: dict[str, list[Any]] = {"image": list(self.images), "video": list(self.videos)}
        if self.order:
            data = {"vision_chunk": chunks(self.order, self.images, self.videos)}
        request: dict[str, Any] = {
            "prompt": self.prompt,
            "multi_modal_data": {key: items for key, items in data.items() if items},
        }
        if self.visual is not None:
            request["mm_processor_kwargs"] = {"vllm_prune": self.visual}
        return request


def chunks(order: Sequence[str], images: Sequence[Image.Image], videos: Sequence[Video]) -> list[dict[str, Any]]:
    """Pictures, and each video as one piece, as items of vLLM's modality `vision_chunk`."""
    pictures, films, made = iter(images), iter(videos), []
    for modality in order:
        if modality == "image":
            made.append({"type": "image", "image": next(pictures), "uuid": None})
        else:
            frames = [Image.fromarray(frame) for frame in next(films)[0]]
            made.append({"type": "video_chunk", "video_chunk": frames, "uuid": None, "prompt": "", "video_idx": 0})
    return made


def ask(*media: Image.Image | Video, visual: Visual = None, question: str = "what is it?") -> Request:
    """A chat prompt that shows media in the given order, each after a word of text."""
    shown = "".join(f"m{i}{VIDEO if isinstance(item, tuple) else IMAGE}" for i, item in enumerate(media))
    prompt = f"<|im_start|>user\n{shown}{question}<|im_end|>\n<|im_start|>assistant\n"
    return with_media(prompt, *media, visual=visual)


def with_media(prompt: str, *media: Image.Image | Video, visual: Visual = None) -> Request:
    """A request with a prompt written by hand."""
    images = tuple(item for item in media if not isinstance(item, tuple))
    videos = tuple(item for item in media if isinstance(item, tuple))
    return Request(prompt, images, videos, visual)
