"""Media intake: the connector that vLLM loads media through, for every endpoint that takes them.

vLLM's own connector is the base, so that options, modalities and the local-file root are read as vLLM reads
them. What it fetches comes through `fetch`, and what it decodes through the processes of `decode_pool`.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import stat
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from vllm import envs
from vllm.exceptions import VLLMError
from vllm.logger import init_logger
from vllm.multimodal.media import MediaConnector
from vllm.multimodal.media.connector import MODALITY_IO_MAP

from vllm_prune.config.load import configuration
from vllm_prune.config.media import Media
from vllm_prune.request import current, stage
from vllm_prune.telemetry import metrics
from vllm_prune.vllm_compat import media_budgets, media_connector

from .busy import DecoderUnavailable, QueueOverflow
from .data_urls import inline
from .decode_pool import DecodePool, Unavailable, pool
from .errors import MediaError, Refused
from .fair_executor import QueueFull
from .fetch import Fetcher, default_tls
from .share import share_key
from .urls import parse, scheme_of

logger = init_logger("vllm.vllm_prune")


class PruneMediaConnector(MediaConnector):
    """vLLM's media connector with checked fetching, operator's limits and decoding in processes of its own.

    Args:
        settings: replaces the operator's section.
        decoders: replaces the decoding processes of this server process.
        fetcher: replaces the fetcher.
        kwargs: as for vLLM's connector.
    """

    def __init__(
        self,
        *args: Any,
        settings: Media | None = None,
        decoders: DecodePool | None = None,
        fetcher: Fetcher | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.settings = _within_vllms(settings or configuration().media)
        self.decoders = decoders or pool()
        domains = tuple(self.allowed_media_domains)
        self.fetcher = fetcher or Fetcher(self.settings, domains, envs.VLLM_MEDIA_URL_ALLOW_REDIRECTS)

    async def load_from_url_async(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
        """Load media; `fetch_timeout` gives way to the operator's `fetch_seconds`.

        Raises:
            MediaError: refused; HTTP 400.
            DecoderUnavailable: HTTP 503.
            QueueOverflow: HTTP 503 or 429.
        """
        try:
            self._count_item()
            if not isinstance(url, str):
                raise Refused("url")
            data = None
            if scheme_of(url) in ("http", "https"):
                data = await self._download(url, media_io)
            with stage("media_decode"):
                return await self._in_turn(self._decode, url, data, media_io)
        except Refused as error:
            self._refuse(error)
        except Unavailable:
            raise DecoderUnavailable from None
        except QueueFull:
            raise QueueOverflow(share_key().tenant) from None

    async def _in_turn(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a blocking function in a thread when it is this request's turn."""
        return await asyncio.wrap_future(self.decoders.threads.submit(share_key(), function, *arguments))

    def load_from_url(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
        """Like `load_from_url_async`, for callers without an event loop of their own."""
        return _run(self.load_from_url_async(url, media_io, fetch_timeout=fetch_timeout))

    async def fetch_image_embedding_async(self, data: str) -> Any:
        """A tensor in base64, where the operator allows them; see `_embedding`."""
        return await self._embedding(self.fetch_image_embedding, data)

    async def fetch_video_embedding_async(self, data: str) -> Any:
        """A tensor in base64, where the operator allows them; see `_embedding`."""
        return await self._embedding(self.fetch_video_embedding, data)

    async def fetch_audio_embedding_async(self, data: str) -> Any:
        """A tensor in base64, where the operator allows them; see `_embedding`."""
        return await self._embedding(self.fetch_audio_embedding, data)

    async def _embedding(self, load: Callable[[str], Any], data: str) -> Any:
        """Load a tensor in this request's turn.

        Raises:
            MediaError: malformed; HTTP 400.
            QueueOverflow: HTTP 503 or 429.
        """
        try:
            return await self._in_turn(load, data)
        except QueueFull:
            raise QueueOverflow(share_key().tenant) from None
        except VLLMError:
            raise
        except Exception as error:  # whatever PyTorch and NumPy make of the bytes
            self._refuse(Refused("embedding", repr(error)))

    async def _download(self, url: str, media_io: Any) -> bytes:
        if not envs.VLLM_MEDIA_CACHE:
            return await self.fetcher.fetch(url, media_io.get_max_bytes(), self._charge_download)
        parse(url, self.settings, self.fetcher.domains)
        data = await self._in_turn(self._get_cached_bytes, url)
        if data is None:
            data = await self.fetcher.fetch(url, media_io.get_max_bytes(), self._charge_download)
            await self._in_turn(self._put_cached_bytes, url, data)
        return bytes(data)

    def _charge_download(self, size: int) -> None:
        try:
            # vLLM's, one for all media of a request; 0.32 has none.
            media_budgets.charge(getattr(self, "download_budget", None), size)
        except media_budgets.RequestLimitExceeded:
            raise Refused("request_bytes") from None

    def _decode(self, url: str, data: bytes | None, media_io: Any) -> Any:
        kind = ""
        if data is None:
            kind, data = self._local(url, media_io)
        started = time.monotonic()
        try:
            return self.decoders.decode(media_io, data, kind)
        finally:
            metrics.observe_decode(modality_of(media_io), time.monotonic() - started)

    def _local(self, url: str, media_io: Any) -> tuple[str, bytes]:
        """Media type, where it matters, and bytes of a data or file URL."""
        scheme = scheme_of(url)
        if scheme == "data":
            is_video = isinstance(media_io, MODALITY_IO_MAP["video"])
            return inline(url, self.settings, media_io.get_max_bytes(), is_video)
        if scheme == "file" and self.allowed_local_media_path is not None:
            return "", self._read_file(url, media_io.get_max_bytes())
        raise Refused("scheme")

    def _read_file(self, url: str, most: int | None) -> bytes:
        limit = min(self.settings.max_bytes, most or self.settings.max_bytes)
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise Refused("file")
        try:
            path = os.path.realpath(unquote(parts.path))
            root = os.path.join(os.path.realpath(self.allowed_local_media_path), "")
            if not path.startswith(root):
                raise Refused("file")
            # Not through a link that has taken the place of the file, and not stuck in a pipe.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise Refused("file")
                data = file.read(limit + 1)
        except (OSError, ValueError):
            raise Refused("file") from None
        if len(data) > limit:
            raise Refused("bytes")
        return data

    def _count_item(self) -> None:
        context = current()
        if context is not None:
            context.media_items += 1
            if context.media_items > self.settings.max_items:
                raise Refused("items")

    def _refuse(self, error: Refused) -> NoReturn:
        metrics.count_media_rejected(error.reason)
        if error.detail:
            logger.debug("media refused (%s): %.500r", error.reason, error.detail)
        raise MediaError(error.reason, self.settings) from None


def _within_vllms(settings: Media) -> Media:
    """The operator's section, with vLLM's own limit on a file where that is lower."""
    most = media_budgets.media_limits().file
    return settings if most is None or most >= settings.max_bytes else settings.model_copy(update={"max_bytes": most})


def modality_of(media_io: Any) -> str:
    """Label of a media IO: image, video, audio or other."""
    return next((name for name, kind in MODALITY_IO_MAP.items() if isinstance(media_io, kind)), "other")


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, also in a thread whose event loop is running."""
    with ThreadPoolExecutor(1) as single:
        return single.submit(contextvars.copy_context().run, asyncio.run, work).result()


def prepare(engine_client: Any) -> list[str]:
    """Get ready for the first media, if the model takes any.

    Returns:
        What the server's media intake does not guard, one line each; empty when ours is in use and complete.
    """
    media_connector.register_media_connector()
    if engine_client.model_config.multimodal_config is None:
        pool().close()
        return []
    findings = media_findings(engine_client)
    if envs.VLLM_MEDIA_CONNECTOR == media_connector.MEDIA_CONNECTOR:
        default_tls()
        pool().warm()
    return findings


def media_findings(engine_client: Any) -> list[str]:
    """What the server's media intake does not guard, one line each."""
    selected = envs.VLLM_MEDIA_CONNECTOR
    if selected != media_connector.MEDIA_CONNECTOR:
        return [
            f"VLLM_MEDIA_CONNECTOR={selected}: media URLs and decoding are not guarded by the section `media`; "
            f"set it to {media_connector.MEDIA_CONNECTOR}"
        ]
    if not media_connector.media_connector_registered():
        return [f"another connector is registered under the name {media_connector.MEDIA_CONNECTOR}"]
    return gpu_decoders(engine_client.model_config.multimodal_config)


def gpu_decoders(mm_config: Any) -> list[str]:
    """Video decoders on a GPU that the operator selected, which the decoding processes cannot use."""
    from vllm.multimodal.media import VIDEO_LOADER_REGISTRY

    options = ((getattr(mm_config, "media_io_kwargs", None) or {}).get("video")) or {}
    names = (options.get("video_backend"), options.get("backend"), envs.VLLM_VIDEO_LOADER_BACKEND)
    on_gpu = [name for name in names if name and VIDEO_LOADER_REGISTRY.backend_requires_gpu(name)]
    if str(options.get("device", "cpu")) != "cpu":
        on_gpu.append(f"device {options['device']}")
    why = "decodes on a GPU, which decoding processes have no access to"
    return [f"videos are refused: {name} {why}" for name in dict.fromkeys(on_gpu)]
