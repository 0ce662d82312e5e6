"""Videos that OpenCV does not read to the end, in real files that PyAV writes."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import av
import numpy as np
import pytest
from vllm.multimodal.media import ImageMediaIO, VideoMediaIO

import vllm_prune.visual.frontend.video_loader  # noqa: F401
from vllm_prune.config.media import Media
from vllm_prune_server.media import videos
from vllm_prune_server.media.decode_pool import DecodePool
from vllm_prune_server.media.errors import Refused
from vllm_prune_server.media.pyav_capture import PyAVCapture
from vllm_prune_server.media.videos import load_video

from ..odd_files import animation, clip, endless_mp4, faststart, recording, session_description, sound_only_mp4

pytestmark = pytest.mark.slow

LOADERS = ("qwen2_vl", "qwen3_vl", "opencv")


def video(loader: str = "qwen2_vl", **options: Any) -> VideoMediaIO:
    return VideoMediaIO(ImageMediaIO(), video_backend=loader, **options)


def decoded(data: bytes, loader: str = "qwen2_vl", **limits: Any) -> tuple[np.ndarray, dict[str, Any], str]:
    result, remark = load_video(video(loader), data, Media(**limits))
    return *result.media, remark


def refusal(data: bytes, **limits: Any) -> str:
    with pytest.raises(Refused) as error:
        decoded(data, **limits)
    return error.value.reason


FILES: dict[str, Callable[[], bytes]] = {
    "av1 in mp4": partial(clip, "mp4", "libsvtav1"),
    "av1 in webm": partial(clip, "webm", "libsvtav1"),
    "h264 in mpegts": partial(clip, "mpegts", "libx264"),
    "mpeg2 in mpegts": partial(clip, "mpegts", "mpeg2video", rate=25),
    "h264 in mkv": partial(clip, "matroska", "libx264"),
    "h265 in mp4": partial(clip, "mp4", "libx265"),
    "vp9 in webm": partial(clip, "webm", "libvpx-vp9"),
    "recorded vp8": partial(recording, "libvpx"),
    "recorded vp9": partial(recording, "libvpx-vp9"),
    "mpeg4 in avi": partial(clip, "avi", "mpeg4"),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("encode", FILES.values(), ids=FILES)
def test_usual_files_decode_to_the_sampled_frames(encode: Callable[[], bytes], loader: str) -> None:
    frames, metadata, remark = decoded(encode(), loader)
    assert remark == ""
    assert metadata["total_num_frames"] == 16
    assert len(frames) == len(metadata["frames_indices"]) >= 4
    assert frames.shape[1:] == (64, 96, 3)
    # Frame i has grey level 40 + 10 i: the frames are those that the indices name, in order.
    levels = frames.reshape(len(frames), -1).mean(axis=1)
    np.testing.assert_allclose(levels, 40 + 10 * np.array(metadata["frames_indices"]), atol=4)


def test_pyav_and_opencv_agree_where_both_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = clip("mp4", "libx264")
    expected, metadata, _ = decoded(data)
    monkeypatch.setattr(videos, "_with_opencv", lambda *args: None)
    frames, other, _ = decoded(data)
    assert other == metadata
    np.testing.assert_allclose(frames.astype(int), expected.astype(int), atol=2)


def test_what_opencv_reads_is_never_decoded_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("PyAV was asked")

    monkeypatch.setattr(PyAVCapture, "open", never)
    assert len(decoded(clip("mp4", "libx264"))[0]) == 8


def test_turned_videos_stand_upright() -> None:
    source, target = io.BytesIO(clip("mp4", "libx264", 8)), io.BytesIO()
    with av.open(source) as file, av.open(target, "w", format="mp4") as turned:
        stream = file.streams.video[0]
        copy = turned.add_stream_from_template(stream)
        for packet in file.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                turned.mux(packet)
    data = bytearray(target.getvalue())
    # The matrix in the track's header, from the identity to a quarter turn.
    matrix = bytes.fromhex("00010000000000000000000000000000000100000000000000000000000000004 0000000".replace(" ", ""))
    place = data.find(matrix, data.find(b"tkhd"))
    turn = bytes.fromhex("0000000000010000000000 00ffff0000000000000000000000600000000000004 0000000".replace(" ", ""))
    data[place : place + len(turn)] = turn
    capture = PyAVCapture.open(bytes(data), lambda width, height: None, 100)
    assert capture is not None
    opencv = videos.video_header(bytes(data))
    assert (capture.width, capture.height) == opencv[:2] == (64, 96)
    read, frame = capture.read()
    assert read
    assert frame is not None
    assert frame.shape == (96, 64, 3)


def test_a_cut_file_is_taken_with_the_frames_before_the_cut() -> None:
    data = faststart(120)
    frames, metadata, remark = decoded(data[: len(data) * 3 // 4], "opencv")
    count = len(metadata["frames_indices"])
    assert 0 < count == len(frames) < 32
    assert remark == f"{count} of 32 sampled frames of a video could be decoded"


def test_a_remark_reaches_the_servers_log(pool: DecodePool, caplog: pytest.LogCaptureFixture) -> None:
    data = faststart(120)
    logging.getLogger("vllm").addHandler(caplog.handler)
    try:
        result = pool.decode(video("opencv"), data[: len(data) * 3 // 4])
    finally:
        logging.getLogger("vllm").removeHandler(caplog.handler)
    assert f"{len(result.media[0])} of 32 sampled frames of a video could be decoded" in caplog.messages


@pytest.mark.parametrize(
    "data",
    [
        faststart()[:1200],
        endless_mp4(20, 4)[:400],
        animation("WEBP", 5),
        sound_only_mp4(),
        session_description(),
        b"#EXTM3U\n#EXTINF:5,\nhttp://127.0.0.1:9/segment.ts\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
        b"\x1aE\xdf\xa3" + bytes(300),
        b"no video",
    ],
)
def test_files_without_a_frame(data: bytes, pool: DecodePool) -> None:
    started = time.monotonic()
    with pytest.raises(Refused, match="no_frames"):
        pool.decode(video(), data)
    assert time.monotonic() - started < 5


def test_limits_hold_for_pyav_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "_with_opencv", lambda *args: None)
    data = clip("mpegts", "libx264", height=64, width=96)
    assert refusal(data, max_pixels=64 * 96 - 1) == "pixels"
    assert refusal(data, max_source_frames=15) == "frames"
    assert refusal(data, max_frames=7) == "frames"
    assert refusal(data, max_video_pixels=64 * 96 * 7) == "frames"
    assert refusal(data, min_side=65) == "shape"
    assert refusal(endless_mp4(2000, 30), max_source_frames=1999) == "frames"
    assert len(decoded(data, max_source_frames=16, max_frames=8, max_pixels=64 * 96)[0]) == 8


def test_videos_of_one_frame_and_gifs() -> None:
    for data in (
        clip("mpegts", "libx264", 1),
        recording("libvpx", 1),
        clip("mp4", "libsvtav1", 1),
        animation("GIF", 1),
    ):
        assert len(decoded(data)[0]) == 1


@pytest.mark.parametrize("loader", LOADERS)
def test_vllm_never_counts_frames_by_reading_a_file(monkeypatch: pytest.MonkeyPatch, loader: str) -> None:
    """As vLLM 0.33 does where the header has no count, before any limit of ours could hold."""

    def count(*arguments: Any) -> int:
        raise AssertionError("the file is read to its end, however long it is")

    monkeypatch.setattr(videos.OpenCVVideoBackendMixin, "demux_count_frames", count, raising=False)
    data = recording("libvpx")
    assert len(decoded(data, loader)[0])
    with pytest.raises(Refused, match="frames"):
        decoded(data, loader, max_source_frames=15)
