"""The connector itself, on every scheme, without an engine; then the real server on its routes."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client import REGISTRY
from vllm import envs
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector

from vllm_prune.cli import doctor
from vllm_prune.config.media import Media
from vllm_prune.vllm_compat import media_connector
from vllm_prune.vllm_compat.signatures import holder
from vllm_prune_server.media.busy import QueueOverflow
from vllm_prune_server.media.connector import PruneMediaConnector
from vllm_prune_server.media.decode_pool import DecodePool
from vllm_prune_server.media.errors import MESSAGES, MediaError
from vllm_prune_server.media.fair_executor import ShareKey
from vllm_prune_server.media.fetch import Fetcher

from .hostile import HostileHost
from .media_files import data_url, image_part, mp4, png, user, video_part
from .odd_files import animation, bomb, endless_mp4, frame_list, slow_mp4, wav

PICTURE = png(120, 160)
SETTINGS = Media(private=("127.0.0.1/32",), max_bytes=1 << 20, max_data_url_bytes=2 << 20)


@pytest.fixture(scope="module")
def host() -> Iterator[HostileHost]:
    with HostileHost({"/picture.png": PICTURE, "/clip.mp4": mp4(8, 56, 56), "/text": b"no picture"}) as running:
        yield running


def connector(pool: DecodePool, settings: Media = SETTINGS, **options: Any) -> PruneMediaConnector:
    return PruneMediaConnector(settings=settings, decoders=pool, **options)


def rejected(reason: str) -> float:
    samples = (sample for family in REGISTRY.collect() for sample in family.samples)
    name = "vllm_prune_media_rejected_total"
    return sum(one.value for one in samples if one.name == name and one.labels["reason"] == reason)


class Downloads:
    """vLLM 0.33's budget of what a request downloads, with a limit of its own."""

    def __init__(self, limit: int) -> None:
        self.left = limit

    def charge(self, size: int) -> None:
        if size > self.left:
            raise ValueError
        self.left -= size


async def test_downloads_of_a_request_share_its_budget(pool: DecodePool, host: HostileHost) -> None:
    """As its parser makes one connector for all media of a request; data URLs are no downloads."""
    one = connector(pool)
    one.download_budget = Downloads(2 * len(PICTURE) + 10)
    for _ in range(2):
        await one.fetch_image_async(host.url("/picture.png"))
    assert one.download_budget.left == 10
    before = rejected("request_bytes")
    with pytest.raises(MediaError, match="together larger than") as error:
        await one.fetch_image_async(host.url("/picture.png"))
    assert error.value.parameter == "messages"
    assert rejected("request_bytes") == before + 1
    await one.fetch_image_async(data_url("image/png", PICTURE))


@pytest.mark.skipif(not hasattr(envs, "VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES"), reason="since vLLM 0.33")
async def test_vllms_budgets_reach_the_connector(
    pool: DecodePool, host: HostileHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envs, "VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES", 2 * 4 * 120 * 160, raising=False)
    kinds = {"decoded_budget": "MediaDecodedBudget", "download_budget": "MediaRequestDownloadBudget"}
    budgets = {argument: holder(f"{kind}.charge")() for argument, kind in kinds.items()}
    one = connector(pool, **budgets)
    for _ in range(2):
        await one.fetch_image_async(host.url("/picture.png"))
    assert budgets["decoded_budget"].used == 2 * 4 * 120 * 160
    assert budgets["download_budget"].used == 2 * len(PICTURE)
    with pytest.raises(MediaError, match="VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES"):
        await one.fetch_image_async(host.url("/picture.png"))


def test_vllms_limit_on_a_file_holds_where_it_is_lower(pool: DecodePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs, "VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB", 3, raising=False)
    assert connector(pool, Media(max_bytes=5 << 20)).settings.max_bytes == 3 << 20
    assert connector(pool, Media(max_bytes=2 << 20)).settings.max_bytes == 2 << 20
    monkeypatch.setattr(envs, "VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB", 0, raising=False)
    assert connector(pool, Media(max_bytes=5 << 20)).settings.max_bytes == 5 << 20


async def refusal(connector: PruneMediaConnector, url: str, modality: str = "image") -> str:
    with pytest.raises(MediaError) as error:
        await getattr(connector, f"fetch_{modality}_async")(url)
    assert isinstance(error.value, VLLMValidationError)
    assert error.value.parameter == "messages"
    assert str(error.value) == MESSAGES[error.value.reason].format(connector.settings)
    return error.value.reason


async def test_a_data_url_gives_vllms_own_pixels(pool: DecodePool) -> None:
    url = data_url("image/png", PICTURE)
    ours, theirs = await connector(pool).fetch_image_async(url), await MediaConnector().fetch_image_async(url)
    assert (ours.media.mode, ours.media.tobytes()) == (theirs.media.mode, theirs.media.tobytes())
    assert (ours.original_bytes, ours.io_config) == (theirs.original_bytes, theirs.io_config)


async def test_videos_use_the_loader_of_the_models_processor(pool: DecodePool, host: HostileHost) -> None:
    import vllm_prune.visual.frontend.video_loader  # noqa: F401

    for url in (data_url("video/mp4", mp4(1, 56, 56)), host.url("/clip.mp4"), data_url("video/jpeg", b"")):
        if url.startswith("data:video/jpeg"):
            url = "data:video/jpeg;base64," + frame_list(5)
        given = {"video_processor": "Qwen2VLVideoProcessor"}
        ours = await connector(pool).fetch_video_async(url, **given)
        theirs = await MediaConnector().fetch_video_async(url, **given)
        assert ours.media[0].tobytes() == theirs.media[0].tobytes()
        assert ours.media[1] == theirs.media[1]
        assert ours.original_bytes == theirs.original_bytes


async def test_audio(pool: DecodePool) -> None:
    sound, rate = await connector(pool).fetch_audio_async(data_url("audio/wav", wav()))
    assert (len(sound), rate) == (3200, 16_000)


def test_without_an_event_loop_and_inside_one(pool: DecodePool, host: HostileHost) -> None:
    one = connector(pool)
    assert one.fetch_image(host.url("/picture.png")).size == (160, 120)

    async def inside() -> tuple[int, int]:
        return one.fetch_image(data_url("image/png", PICTURE)).size

    assert asyncio.run(inside()) == (160, 120)


async def test_fetched_pictures_and_refused_ones(pool: DecodePool, host: HostileHost) -> None:
    one = connector(pool)
    assert (await one.fetch_image_async(host.url("/picture.png"))).size == (160, 120)
    assert (await one.fetch_image_async(host.url("/redirect?to=/picture.png"))).original_bytes == PICTURE
    before = rejected("image_format"), rejected("address")
    assert await refusal(one, host.url("/text")) == "image_format"
    assert await refusal(one, "http://127.0.0.2/x") == "address"
    assert (rejected("image_format"), rejected("address")) == (before[0] + 1, before[1] + 1)
    assert await refusal(one, host.url("/endless")) == "bytes"
    assert await refusal(one, host.url("/zipped")) == "encoding"


async def test_vllms_own_allow_list_counts_too(pool: DecodePool, host: HostileHost) -> None:
    one = connector(pool, allowed_media_domains=["images.test"])
    assert await refusal(one, host.url("/picture.png")) == "host"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("data:image/png;base64", "data_url"),
        ("data:image/png," + "A" * 40, "data_url"),
        ("data:,", "data_url"),
        ("data:image/png;base64,", "malformed"),
        ("data:image/png;base64,!!!!", "base64"),
        ("data:image/png;base64,AAAA\n", "image_format"),
        ("data:image/png;base64," + "é" * 8, "base64"),
        ("data:image/png;base64," + "A" * 3_000_000, "data_url_bytes"),
        ("data:image/png;base64," + base64.b64encode(bomb(50_000)).decode(), "pixels"),
        ("ftp://example.com/x.png", "scheme"),
        ("file:///etc/hostname", "scheme"),
        ("http://user@example.com/", "url"),
        ("picture.png", "url"),
    ],
)
async def test_urls_that_are_none(pool: DecodePool, url: str, reason: str) -> None:
    assert await refusal(connector(pool), url) == reason


@pytest.mark.parametrize("modality", ["image", "video", "audio"])
async def test_embeddings_that_are_no_tensors(pool: DecodePool, modality: str) -> None:
    for data in ("AAAA", "!", base64.b64encode(b"\x93NUMPY\x01\x00" + bytes(20)).decode()):
        assert await refusal(connector(pool), data, f"{modality}_embedding") == "embedding"


@pytest.mark.slow
async def test_a_full_queue_is_a_refusal_to_try_again(pool: DecodePool) -> None:
    few = DecodePool(SETTINGS.model_copy(update={"max_waiting": 1, "decode_workers": 1}), pool.forker)
    release = threading.Event()
    blocked = few.threads.submit(ShareKey(), release.wait, 60)
    loads = [asyncio.create_task(connector(few).fetch_image_async(data_url("image/png", PICTURE))) for _ in range(4)]
    done, _ = await asyncio.wait(loads, timeout=5)
    release.set()
    await asyncio.gather(*loads, return_exceptions=True)
    assert blocked.result(60)
    assert done
    for task in done:
        error = task.exception()
        assert isinstance(error, QueueOverflow)
        response = error.refusal.response()
        assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert QueueOverflow("alpha").refusal.status == 429


async def test_video_frames_are_capped_on_every_path(pool: DecodePool) -> None:
    one = connector(pool, media_io_kwargs={"video": {"num_frames": -1}})
    assert await refusal(one, "data:video/jpeg;base64," + frame_list(769), "video") == "frames"
    assert await refusal(one, "data:VIDEO/JPEG;x=1;base64," + frame_list(769), "video") == "frames"
    assert await refusal(one, data_url("image/gif", animation("GIF", 800))) == "frames"


async def test_local_files_stay_below_the_root(pool: DecodePool, tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "root-outside.png"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "a b.png").write_bytes(PICTURE)
    outside.write_bytes(PICTURE)
    (root / "link.png").symlink_to(outside)
    (root / "inner.png").symlink_to(root / "deep" / "a b.png")
    (root / "big.png").write_bytes(bytes(SETTINGS.max_bytes + 1))
    os.mkfifo(root / "pipe.png")
    one = connector(pool, allowed_local_media_path=str(root))
    for good in (f"file://{root}/deep/a%20b.png", f"file://localhost{root}/inner.png", f"FILE://{root}/inner.png"):
        assert (await one.fetch_image_async(good)).size == (160, 120)
    for bad in (
        f"file://{outside}",
        f"file://{root}/../root-outside.png",
        f"file://{root}/%2e%2e/root-outside.png",
        f"file://{root}/link.png",
        f"file://{root}/none.png",
        f"file://{root}/deep",
        f"file://{root}",
        f"file://{root}/pipe.png",
        f"file://{root}/a%00.png",
        f"file://otherhost{root}/inner.png",
        "file:///dev/zero",
        "file:///proc/self/environ",
    ):
        assert await refusal(one, bad) == "file", bad
    assert await refusal(one, f"file://{root}/big.png") == "bytes"
    assert await refusal(connector(pool), f"file://{root}/inner.png") == "scheme"


async def test_vllms_disk_cache_comes_after_the_check(
    pool: DecodePool, host: HostileHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An engine that ran in this process earlier has frozen vLLM's view of the environment.
    envs.disable_envs_cache()
    monkeypatch.setenv("VLLM_MEDIA_CACHE", str(tmp_path))
    before = len(host.seen)
    for _ in range(2):
        assert (await connector(pool).fetch_image_async(host.url("/picture.png?cached"))).size == (160, 120)
    assert len(host.seen) == before + 1
    strict = SETTINGS.model_copy(update={"hosts": ("images.test",)})
    assert await refusal(connector(pool, strict), host.url("/picture.png?cached")) == "host"


def test_the_registry_builds_ours_by_name() -> None:
    media_connector.register_media_connector()
    found = MEDIA_CONNECTOR_REGISTRY.load(
        media_connector.MEDIA_CONNECTOR, media_io_kwargs=None, allowed_media_domains=["a.b"]
    )
    assert isinstance(found, PruneMediaConnector)
    assert isinstance(found.fetcher, Fetcher)
    assert found.fetcher.domains == ("a.b",)
    assert media_connector.media_connector_registered()


def test_doctor_shows_another_connector(monkeypatch: pytest.MonkeyPatch) -> None:
    for connector, good in (("http", False), (media_connector.MEDIA_CONNECTOR, True)):
        monkeypatch.setenv("VLLM_MEDIA_CONNECTOR", connector)
        found = doctor._media()
        assert found.good is good
        assert f"VLLM_MEDIA_CONNECTOR={connector}" in found.detail


# The real server. Its configuration allows one private host, by the name of localhost.


def ask(server: Any, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=120)


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def bodies(model: str, url: str) -> dict[str, tuple[dict[str, Any], str | None]]:
    """Request and expected `param` by route, for every route that takes pictures."""
    chat = {"model": model, "messages": user([picture(url)])}
    inputs = [{"role": "user", "content": [{"type": "input_image", "image_url": url, "detail": "auto"}]}]
    return {
        "/v1/chat/completions": ({**chat, "max_tokens": 2}, "messages"),
        "/v1/responses": ({"model": model, "input": inputs, "max_output_tokens": 2}, "input"),
        "/tokenize": (chat, "messages"),
    }


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/tokenize"])
def test_no_route_fetches_from_a_private_address(server: Any, model: str, host: HostileHost, path: str) -> None:
    before, seen = server.metric("vllm_prune_media_rejected_total", reason="address"), len(host.seen)
    body, param = bodies(model, host.url("/picture.png"))[path]
    response = ask(server, path, body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["message"], error["type"], error["param"]) == (MESSAGES["address"], "BadRequestError", param)
    assert len(host.seen) == seen
    assert server.metric("vllm_prune_media_rejected_total", reason="address") == before + 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/tokenize"])
def test_an_allowed_host_works_on_every_route(server: Any, model: str, host: HostileHost, path: str) -> None:
    fetched = server.metric("vllm_prune_media_fetch_seconds_count")
    decoded = server.metric("vllm_prune_media_decode_seconds_count", modality="image")
    body, _ = bodies(model, host.url("/redirect?to=/picture.png", "localhost"))[path]
    response = ask(server, path, body)
    assert response.status_code == 200, response.text
    assert server.metric("vllm_prune_media_fetch_seconds_count") == fetched + 1
    assert server.metric("vllm_prune_media_decode_seconds_count", modality="image") == decoded + 1


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (picture("http://2130706433/x.png"), "url"),
        (picture("http://example.com\\@127.0.0.1/"), "url"),
        (picture("ftp://example.com/x"), "scheme"),
        (picture("file:///etc/passwd"), "scheme"),
        (picture("http://nobody.invalid/x.png"), "dns"),
        (image_part(bomb(50_000)), "pixels"),
        (image_part(png(112, 112)[:200]), "malformed"),
        (image_part(png(1, 1)), "shape"),
        (video_part(endless_mp4(100_000, 1)), "frames"),
        (video_part(mp4(4, 112, 112)[:300]), "no_frames"),
    ],
)
def test_refusals_over_http(server: Any, model: str, part: dict[str, Any], reason: str) -> None:
    before = server.metric("vllm_prune_media_rejected_total", reason=reason)
    response = ask(server, "/v1/chat/completions", {"model": model, "messages": user([part]), "max_tokens": 2})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["message"], error["param"]) == (MESSAGES[reason].format(Media()), "messages")
    assert server.metric("vllm_prune_media_rejected_total", reason=reason) == before + 1


def test_more_media_than_a_request_may_hold(server: Any, model: str) -> None:
    pictures = [image_part(png(20, 20 + i)) for i in range(8)]
    body = {"model": model, "max_tokens": 2}
    assert ask(server, "/v1/chat/completions", {**body, "messages": user(pictures)}).status_code == 200
    parts = [*pictures, video_part(mp4(4, 56, 56))]
    response = ask(server, "/v1/chat/completions", {**body, "messages": user(parts)})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["message"].startswith("the request holds 9 media, and at most 8 are taken; send fewer, or raise")
    assert error["param"] == "messages"


def test_decoding_processes_killed_under_the_server(server: Any, model: str) -> None:
    def decoders() -> list[psutil.Process]:
        parents = [p for p in psutil.Process(server.process.pid).children() if "decode_worker" in " ".join(p.cmdline())]
        return [child for parent in parents for child in parent.children()]

    body = {"model": model, "messages": user([video_part(slow_mp4())]), "max_tokens": 2}
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(ask(server, "/v1/chat/completions", body)))
    busy = {p.pid: sum(p.cpu_times()[:2]) for p in decoders()}
    thread.start()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        working = [p for p in decoders() if sum(p.cpu_times()[:2]) > busy.get(p.pid, 0) + 0.2]
        if working:
            os.kill(working[0].pid, signal.SIGKILL)
            break
        time.sleep(0.02)
    thread.join(60)
    assert answers[0].status_code == 400, answers[0].text
    assert answers[0].json()["error"]["message"] == MESSAGES["crash"]
    after = ask(server, "/v1/chat/completions", {**body, "messages": user([image_part(png(112, 112))])})
    assert after.status_code == 200


def test_the_self_check_says_that_the_intake_is_in_use(server: Any) -> None:
    assert httpx.get(f"{server.url}/health/startup", timeout=30).json()["media_findings"] == []
