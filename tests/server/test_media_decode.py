"""Decoding in processes: what comes back is vLLM's own result, what is too much is refused, what dies is replaced."""

from __future__ import annotations

import copy
import os
import signal
import threading
import time
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from vllm import envs
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.media import AudioMediaIO, ImageMediaIO, VideoMediaIO

import vllm_prune.visual.frontend.video_loader  # noqa: F401
from vllm_prune.config.media import Media, MiB
from vllm_prune_server.media import wire as wire
from vllm_prune_server.media.decode_pool import DecodePool, environment
from vllm_prune_server.media.errors import Refused
from vllm_prune_server.media.fair_executor import ShareKey

from .media_files import jpeg, mp4, png
from .odd_files import animation, bomb, endless_mp4, flat_png, frame_list, recording, slow_mp4, still, wav

pytestmark = pytest.mark.slow

RGB, AS_IS = ImageMediaIO(), ImageMediaIO(image_mode=None)


def video(**options: Any) -> VideoMediaIO:
    return VideoMediaIO(RGB, **{"video_backend": "qwen2_vl", **options})


def limited(pool: DecodePool, **limits: Any) -> DecodePool:
    """A pool with other limits, forked from the same process."""
    return DecodePool(Media(decode_workers=1, **limits), pool.forker)


def refusal(pool: DecodePool, media_io: Any, data: bytes, kind: str = "") -> str:
    with pytest.raises(Refused) as error:
        pool.decode(media_io, data, kind)
    return error.value.reason


def content_hash(item: Any) -> str:
    return MultiModalHasher.hash_kwargs("sha256", item=item)


def turned() -> bytes:
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6
    return exif.tobytes()


IMAGES = {
    "png": png(200, 300),
    "jpeg": jpeg(200, 300),
    "rgba png": still("RGBA", "PNG"),
    "grey png": still("L", "PNG"),
    "grey and alpha png": still("LA", "PNG"),
    "palette png": still("P", "PNG"),
    "transparent palette png": still("P", "PNG", transparency=3),
    "one bit png": still("1", "PNG"),
    "cmyk jpeg": still("CMYK", "JPEG"),
    "turned jpeg": still("RGB", "JPEG", exif=turned()),
    "webp": still("RGBA", "WEBP"),
    "bmp": still("RGB", "BMP"),
    "tiff": still("RGB", "TIFF"),
    "gif": animation("GIF", 5),
    "apng": animation("PNG", 5),
    "animated webp": animation("WEBP", 5),
}


@pytest.mark.parametrize("media_io", [RGB, AS_IS], ids=["rgb", "as is"])
@pytest.mark.parametrize("data", IMAGES.values(), ids=IMAGES)
def test_images_are_vllms_to_the_byte(pool: DecodePool, media_io: ImageMediaIO, data: bytes) -> None:
    ours, theirs = pool.decode(media_io, data), media_io.load_bytes(data)
    assert (ours.media.mode, ours.media.size) == (theirs.media.mode, theirs.media.size)
    assert ours.media.tobytes() == theirs.media.tobytes()
    assert ours.media.convert("RGBA").tobytes() == theirs.media.convert("RGBA").tobytes()
    assert (ours.original_bytes, ours.io_config) == (data, theirs.io_config)
    assert content_hash(ours) == content_hash(theirs)


def test_decoders_share_the_servers_session_but_not_its_signals(pool: DecodePool) -> None:
    worker = pool.forker.fork(Media())
    try:
        assert os.getsid(worker.pid) == os.getsid(0)
        assert os.getpgid(worker.pid) != os.getpgid(0)
    finally:
        pool.forker.kill(worker)


VIDEOS = {
    "mp4": (video(), mp4(24, 112, 140)),
    "one frame": (video(), mp4(1, 112, 112)),
    "three frames": (video(), mp4(3, 112, 112)),
    "at 1 fps": (video(fps=1), mp4(24, 56, 56)),
    "uniform": (video(video_backend="opencv", num_frames=5), mp4(24, 56, 56)),
    "qwen3": (video(video_backend="qwen3_vl"), mp4(24, 56, 56)),
    "gif": (video(), animation("GIF", 12)),
}


@pytest.mark.parametrize(("media_io", "data"), VIDEOS.values(), ids=VIDEOS)
def test_videos_are_vllms_to_the_byte(pool: DecodePool, media_io: VideoMediaIO, data: bytes) -> None:
    ours, theirs = pool.decode(media_io, data), media_io.load_bytes(data)
    np.testing.assert_array_equal(ours.media[0], theirs.media[0])
    assert ours.media[0].dtype == theirs.media[0].dtype
    assert ours.media[0].flags.writeable
    assert ours.media[1] == theirs.media[1]
    assert content_hash(ours) == content_hash(theirs)


def test_frame_lists_and_audio_are_vllms(pool: DecodePool) -> None:
    text = frame_list(9)
    ours = pool.decode(video(), text.encode(), "video/jpeg")
    theirs = video().load_base64("video/jpeg", text)
    np.testing.assert_array_equal(ours.media[0], theirs.media[0])
    assert (ours.media[1], ours.original_bytes) == (theirs.media[1], theirs.original_bytes)
    sound, rate = pool.decode(AudioMediaIO(), wav())
    expected, expected_rate = AudioMediaIO().load_bytes(wav())
    np.testing.assert_array_equal(sound, expected)
    assert rate == expected_rate


@pytest.mark.parametrize(
    ("media_io", "data", "reason"),
    [
        (RGB, bomb(50_000), "pixels"),
        (RGB, bomb(9_000), "pixels"),
        (RGB, bomb(4_000), "malformed"),
        (RGB, png(1, 1), "shape"),
        (RGB, png(3, 500), "shape"),
        (RGB, png(4, 801), "shape"),
        (RGB, animation("GIF", 800), "frames"),
        (RGB, animation("PNG", 800), "frames"),
        (RGB, animation("WEBP", 800), "frames"),
        (RGB, png(200, 200)[:300], "malformed"),
        (RGB, jpeg(200, 200)[:700], "malformed"),
        (RGB, b"not a picture", "image_format"),
        (RGB, b"", "malformed"),
        (RGB, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image_format"),
        (video(), b"", "malformed"),
        (video(), b"not a video", "no_frames"),
        (video(), mp4(4, 112, 112)[:300], "no_frames"),
        (video(), mp4(8, 2, 560), "shape"),
        (video(), endless_mp4(100_000, 1), "frames"),
        (AudioMediaIO(), b"not a sound", "malformed"),
    ],
)
def test_too_much_or_broken(pool: DecodePool, media_io: Any, data: bytes, reason: str) -> None:
    started = time.monotonic()
    assert refusal(pool, media_io, data) == reason
    assert time.monotonic() - started < 5
    assert pool.decode(RGB, png(20, 20)).media.size == (20, 20)


def test_the_caps_of_frames_hold_on_every_path(pool: DecodePool) -> None:
    few = limited(pool, max_frames=6)
    assert refusal(few, video(), mp4(24, 56, 56)) == "frames"
    assert refusal(few, video(video_backend="opencv", num_frames=-1), mp4(24, 56, 56)) == "frames"
    assert refusal(few, video(), animation("GIF", 400)) == "frames"
    assert refusal(few, video(num_frames=-1), frame_list(9).encode(), "video/jpeg") == "frames"
    assert len(few.decode(video(num_frames=6), frame_list(900).encode(), "video/jpeg").media[0]) == 6
    assert len(few.decode(video(), mp4(12, 56, 56)).media[0]) == 6
    small = limited(pool, max_video_pixels=56 * 56 * 10)
    assert refusal(small, video(), mp4(24, 56, 56)) == "frames"
    assert refusal(small, video(num_frames=-1), frame_list(30).encode(), "video/jpeg") == "frames"
    assert refusal(limited(pool, max_pixels=1000), video(), mp4(4, 56, 56)) == "pixels"
    assert refusal(limited(pool, max_pixels=1000), video(), frame_list(2).encode(), "video/jpeg") == "pixels"


def test_frame_lists_that_are_none(pool: DecodePool) -> None:
    for text in (b",,,", b"AAAA,AAAA"):
        assert refusal(pool, video(), text, "video/jpeg") == "image_format"
    for text in (b"\xff\xfe", frame_list(2).encode() + b",!"):
        assert refusal(pool, video(), text, "video/jpeg") == "malformed"


class Budget:
    """What vLLM 0.33 puts into the media IO of a request, with a limit of its own; its lock cannot be pickled."""

    def __init__(self, used: int = 0) -> None:
        self.used, self.lock = used, threading.Lock()

    def charge(self, decoded_bytes: int) -> None:
        if 0 < envs.VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES < self.used + decoded_bytes:
            raise ValueError
        self.used += decoded_bytes

    def reserve(self, max_bytes: int) -> int:
        return max_bytes

    def settle(self, reserved: int, decoded_bytes: int) -> None:
        self.charge(decoded_bytes)


CHARGING = hasattr(envs, "VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES")
"""Whether this vLLM's media IO charges what it decodes, as from 0.33 on."""


def budgeted(media_io: Any, budget: Any) -> Any:
    """A copy of a media IO with the budget of a request."""
    copied = copy.copy(media_io)
    if isinstance(media_io, VideoMediaIO):
        copied.image_io = budgeted(media_io.image_io, budget)
    else:
        copied.decoded_budget = budget
    return copied


@pytest.mark.parametrize(
    ("media_io", "data", "kind", "size"),
    [
        (RGB, png(200, 300), "", 4 * 200 * 300),
        (video(), mp4(12, 56, 56), "", 3 * 6 * 56 * 56),
        (video(), recording("libvpx"), "", None),
        (video(num_frames=5), frame_list(5).encode(), "video/jpeg", None),
        (AudioMediaIO(), wav(), "", None),
    ],
    ids=["image", "video", "video without a frame count", "frame list", "audio"],
)
def test_decoded_bytes_are_charged_to_the_request(
    pool: DecodePool, monkeypatch: pytest.MonkeyPatch, media_io: Any, data: bytes, kind: str, size: int | None
) -> None:
    """As vLLM charges them in its own process; a request that has no room left is refused."""
    monkeypatch.setattr(envs, "VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES", 1 << 30, raising=False)
    budget = Budget()
    pool.decode(budgeted(media_io, budget), data, kind)
    if CHARGING:
        theirs = Budget()
        own = budgeted(media_io, theirs)
        own.load_base64(kind, data.decode()) if kind else own.load_bytes(data)
        assert budget.used == theirs.used > 0
        assert size in (None, budget.used)
        monkeypatch.setattr(envs, "VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES", 2 * budget.used - 1)
        assert refusal(pool, budgeted(media_io, budget), data, kind) == "request_decoded_bytes"
        assert budget.used == theirs.used


def test_frames_over_the_requests_limit_are_refused_before_any_is_decoded(
    pool: DecodePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every vLLM that gives a budget, by what is left of it."""
    monkeypatch.setattr(envs, "VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES", 3 * 56 * 56 * 6, raising=False)
    assert len(pool.decode(budgeted(video(), Budget()), mp4(12, 56, 56)).media[0]) == 6
    assert refusal(pool, budgeted(video(), Budget(used=1)), mp4(12, 56, 56)) == "request_decoded_bytes"
    monkeypatch.setattr(envs, "VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES", 0)
    assert len(pool.decode(budgeted(video(), Budget(used=1)), mp4(12, 56, 56)).media[0]) == 6


def test_memory_is_limited(pool: DecodePool) -> None:
    tight = limited(pool, decode_memory_bytes=64 * MiB)
    assert refusal(tight, RGB, flat_png(6_000)) == "memory"
    assert tight.decode(RGB, png(200, 200)).media.size == (200, 200)


def test_output_is_limited(pool: DecodePool) -> None:
    tight = limited(pool, max_decoded_bytes=MiB)
    assert refusal(tight, RGB, flat_png(3_000)) == "decoded_bytes"
    assert tight.decode(RGB, png(200, 200)).media.size == (200, 200)


def test_time_is_limited(pool: DecodePool) -> None:
    hasty = limited(pool, decode_seconds=0.4)
    started = time.monotonic()
    assert refusal(hasty, video(), slow_mp4()) == "decode_time"
    assert time.monotonic() - started < 3
    assert hasty.decode(RGB, png(200, 200)).media.size == (200, 200)


def decoders(pool: DecodePool) -> set[int]:
    """Processes forked so far, their parent left out."""
    parents = [p for p in psutil.Process().children() if "decode_worker" in " ".join(p.cmdline())]
    return {child.pid for parent in parents for child in parent.children()}


def test_a_process_killed_while_it_decodes(pool: DecodePool) -> None:
    fresh = limited(pool)
    before = decoders(pool)
    results: list[str] = []
    data = slow_mp4()
    thread = threading.Thread(target=lambda: results.append(refusal(fresh, video(), data)))
    thread.start()
    deadline = time.monotonic() + 20
    while not (victims := decoders(pool) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    (victim,) = victims
    os.kill(victim, signal.SIGKILL)
    thread.join(10)
    assert results == ["crash"]
    assert fresh.decode(RGB, png(20, 20)).media.size == (20, 20)
    assert victim not in decoders(pool)


def _wait_for_death(victim: psutil.Process) -> None:
    # Their parent may never ask how they ended.
    deadline = time.monotonic() + 30
    while victim.is_running() and victim.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_processes_killed_while_idle_are_passed_over(pool: DecodePool) -> None:
    pool.decode(RGB, png(20, 20))
    victims = [psutil.Process(pid) for pid in decoders(pool)]
    for victim in victims:
        victim.kill()
    for victim in victims:
        _wait_for_death(victim)
    assert pool.decode(RGB, png(20, 20)).media.size == (20, 20)


def test_several_threads_share_the_processes(pool: DecodePool) -> None:
    files = [png(40 + i, 60) for i in range(40)]
    futures = [pool.threads.submit(ShareKey(), pool.decode, RGB, data) for data in files]
    sizes = [future.result(60).media.size for future in futures]
    assert sizes == [(60, 40 + i) for i in range(40)]
    assert len(pool._idle) <= pool.limits.workers


def test_what_comes_back_is_not_trusted() -> None:
    open_ended = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.write(open_ended, bytes(100))
    with pytest.raises(Refused, match="crash"):
        wire.view(open_ended, 1000)
    with pytest.raises(Refused, match="decoded_bytes"):
        wire.view(wire.seal([bytes(100)]), 99)
    image = b'{"kind": "image", "wrapped": false, "mode": "RGB", "size": [60000, 60000], "palette": null}'
    array = b'{"kind": "array", "wrapped": false, "dtype": "%s", "shape": [%s], "extra": 1}'
    arrays = [array % pair for pair in ((b"uint8", b"9"), (b"object", b"1"), (b"uint8", b"-4, -2"))]
    for text in (image, *arrays, b"[]", b"x"):
        memory = wire.view(wire.seal([len(text).to_bytes(8, "little"), text, bytes(8)]), 10**6)
        with pytest.raises(Refused, match="crash"):
            wire.unpack(memory, b"")
    memory = wire.view(wire.seal([(1 << 40).to_bytes(8, "little"), bytes(8)]), 10**6)
    with pytest.raises(Refused, match="crash"):
        wire.unpack(memory, b"")


def test_no_secret_reaches_a_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "VLLM_PRUNE_TENANTS"):
        monkeypatch.setenv(name, "hush")
    monkeypatch.setenv("VLLM_VIDEO_LOADER_BACKEND", "opencv")
    found = environment()
    assert "hush" not in found.values()
    assert found["VLLM_VIDEO_LOADER_BACKEND"] == "opencv"


@pytest.mark.slow
def test_everything_ends_with_the_pool() -> None:
    own = DecodePool(Media(decode_workers=1))
    known = set(psutil.Process().children())
    own.decode(RGB, png(20, 20))
    (parent,) = set(psutil.Process().children()) - known
    started = [parent, *parent.children()]
    assert len(started) == 2
    parent.kill()
    # Until the idle process has ended with its parent, a file handed to it would count as the one that ended it.
    assert psutil.wait_procs(started, timeout=5)[1] == []
    assert own.decode(RGB, png(20, 20)).media.size == (20, 20)
    (second,) = [p for p in set(psutil.Process().children()) - known if p.is_running()]
    started += [second, *second.children()]
    own.close()
    _, alive = psutil.wait_procs(started, timeout=5)
    assert alive == []
