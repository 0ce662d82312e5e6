"""Pictures and videos as data URLs. Every one is different, so that no cache answers for the vision tower."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vllm_prune.bench import pictures

FRAMES_PER_SECOND = 2.0


def screens(side: tuple[int, int], seed: int) -> Iterator[str]:
    """Endless different screenshots as PNG data URLs.

    Args:
        side: height and width in pixels.
        seed: equal seeds give equal pictures.
    """
    height, width = side
    return pictures.screens(width, height, seed)


def videos(frames: int, side: tuple[int, int], cell: int, seed: int) -> Iterator[str]:
    """Endless different screen recordings as MP4 data URLs: a still page with a noisy box that moves.

    Args:
        frames: of each video, at two frames per second.
        side: height and width in pixels.
        cell: pixels per side of a visual token; the page is one colour per cell.
        seed: equal seeds give equal videos.
    """
    rng = np.random.default_rng(seed)
    while True:
        yield "data:video/mp4;base64," + base64.b64encode(_mp4(_film(frames, side, cell, rng))).decode()


def film(frames: int, cells: tuple[int, int], cell: int, seed: int) -> np.ndarray:
    """One such recording's pixels, uint8 [frames, height, width, 3], for rows and columns of cells."""
    return _film(frames, (cells[0] * cell, cells[1] * cell), cell, np.random.default_rng(seed))


def _film(frames: int, side: tuple[int, int], cell: int, rng: np.random.Generator) -> np.ndarray:
    height, width = side
    page = rng.integers(0, 255, (height // cell, width // cell, 3), dtype=np.uint8).repeat(cell, 0).repeat(cell, 1)
    shots = np.repeat(page[None], frames, 0)
    for t in range(frames):
        top, left = (5 * t) % max(1, height - cell), (9 * t) % max(1, width - cell)
        shots[t, top : top + cell, left : left + cell] = rng.integers(0, 255, (cell, cell, 3), dtype=np.uint8)
    return shots


def _mp4(shots: np.ndarray) -> bytes:
    import cv2

    with tempfile.TemporaryDirectory(prefix="vllm-prune-video-") as folder:
        path = Path(folder) / "video.mp4"
        size = (shots.shape[2], shots.shape[1])
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), FRAMES_PER_SECOND, size)
        if not writer.isOpened():
            raise RuntimeError("OpenCV cannot write MP4 here: install opencv-python-headless with FFmpeg")
        for shot in shots:
            writer.write(shot)
        writer.release()
        return path.read_bytes()
