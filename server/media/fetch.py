"""The one fetcher: every hop parsed, resolved once, checked, and dialled at the address that was checked."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache, partial

import httpx

from vllm_prune import __version__
from vllm_prune.config.media import Media
from vllm_prune.request import add_stage
from vllm_prune.telemetry import metrics

from .errors import Refused
from .fair_executor import FairExecutor
from .share import share_key
from .urls import Target, check_addresses, literal, parse

Resolver = Callable[[str, int], Awaitable[list[str]]]
"""From host and port to all addresses, as text."""
Charge = Callable[[int], None]
"""Counts bytes that arrive; raises `Refused` where they are too many."""

# Apart from the other threads, and no tenant has all of them: a lookup cannot be stopped, and takes as long as the
# system's resolver waits for a name server that never answers.
_lookups = FairExecutor(32, "vllm-prune-names", most_waiting=1024, most_running=16)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ATTEMPTS = 3
_HEADERS = {"Accept": "image/*, video/*, audio/*;q=0.9, */*;q=0.5", "Accept-Encoding": "identity"}


async def resolve(host: str, port: int) -> list[str]:
    """All addresses of a host, by the system's resolver.

    Raises:
        Refused: the name is unknown.
    """
    lookup = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        answers = await asyncio.wrap_future(_lookups.submit(share_key(), lookup))
    except (OSError, UnicodeError):
        raise Refused("dns") from None
    return [str(answer[4][0]) for answer in answers]


class Fetcher:
    """Downloads of media within the operator's limits.

    Args:
        settings: the operator's section.
        domains: vLLM's own `--allowed-media-domains`; empty: any.
        redirects: whether redirects are followed at all.
        resolver: replaces the system's resolver.
        tls: replaces the certificates that httpx trusts.
    """

    def __init__(
        self,
        settings: Media,
        domains: tuple[str, ...] = (),
        redirects: bool = True,
        resolver: Resolver = resolve,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.settings, self.domains, self.resolver = settings, domains, resolver
        self.hops = settings.max_redirects if redirects else 0
        self.tls = tls

    async def fetch(self, url: str, most: int | None = None, charge: Charge = lambda size: None) -> bytes:
        """The file behind an http or https URL.

        Args:
            url: as the client gave it.
            most: a lower limit on its bytes than the section's.
            charge: called with the bytes of each part of a body that arrives; may refuse them.

        Raises:
            Refused: anything that keeps it from being fetched within the limits.
        """
        started = time.monotonic()
        limit = min(self.settings.max_bytes, most or self.settings.max_bytes)
        try:
            return await asyncio.wait_for(self._follow(url, limit, charge), self.settings.fetch_seconds)
        except (TimeoutError, httpx.TimeoutException):
            raise Refused("timeout") from None
        except httpx.InvalidURL:
            # Of a redirect, which httpx looks at without following it; the client's own URL has been parsed before.
            raise Refused("redirect") from None
        except (httpx.HTTPError, OSError, ssl.SSLError):
            raise Refused("connection") from None
        finally:
            seconds = time.monotonic() - started
            add_stage("fetch", seconds)
            metrics.observe_fetch(seconds)

    async def _follow(self, url: str, limit: int, charge: Charge) -> bytes:
        target = parse(url, self.settings, self.domains)
        for _ in range(self.hops + 1):
            addresses = await self._addresses(target)
            answer = await self._request(target, addresses, limit, charge)
            if isinstance(answer, bytes):
                return answer
            target = self._redirected(target, answer)
        raise Refused("redirect")

    async def _addresses(self, target: Target) -> list[str]:
        known = [target.host] if literal(target.host) else await self.resolver(target.host, target.port)
        return check_addresses(target, known, self.settings)

    async def _request(self, target: Target, addresses: list[str], limit: int, charge: Charge) -> bytes | str:
        """The body, or the place that the answer redirects to."""
        seconds = httpx.Timeout(self.settings.fetch_seconds, connect=self.settings.connect_seconds)
        trusted = self.tls or default_tls()
        # A client of its own: a connection kept for the next fetch would be one that nobody checked for it.
        async with httpx.AsyncClient(verify=trusted, trust_env=False, timeout=seconds) as client:
            for address in addresses[:_ATTEMPTS]:
                try:
                    response = await client.send(_pinned(client, target, address), stream=True)
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    continue
                try:
                    return await _body(response, limit, charge)
                finally:
                    await response.aclose()
        raise Refused("connection")

    def _redirected(self, origin: Target, location: str) -> Target:
        if not location:
            raise Refused("redirect")
        try:
            # Before joining, which would percent-encode what parsers disagree about.
            if any(char == "\\" or char.isspace() or not char.isprintable() for char in location):
                raise Refused("redirect")
            target = parse(str(origin.url.join(location)), self.settings, self.domains)
        except (httpx.InvalidURL, ValueError):
            raise Refused("redirect") from None
        if origin.url.scheme == "https" and target.url.scheme == "http":
            raise Refused("redirect")
        usual = origin.has_usual_port and target.has_usual_port
        if target.port != origin.port and not usual and not self.settings.allow_port_change:
            raise Refused("redirect")
        return target


def _pinned(client: httpx.AsyncClient, target: Target, address: str) -> httpx.Request:
    """A request that dials `address`, while TLS and the Host header keep the name."""
    headers = {**_HEADERS, "Host": target.url.netloc.decode(), "User-Agent": f"vllm-prune/{__version__}"}
    where = target.url.copy_with(host=address)
    return client.build_request("GET", where, headers=headers, extensions={"sni_hostname": target.host})


async def _body(response: httpx.Response, limit: int, charge: Charge) -> bytes | str:
    if response.status_code in _REDIRECTS:
        return response.headers.get("location", "")
    if response.status_code != 200:
        raise Refused("status")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused("encoding")
    declared = response.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise Refused("bytes")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > limit:
            raise Refused("bytes")
        charge(len(chunk))
    return bytes(body)


@lru_cache
def default_tls() -> ssl.SSLContext:
    """The certificates that httpx trusts, or those of SSL_CERT_FILE and SSL_CERT_DIR. Reading them takes a while."""
    return httpx.create_ssl_context()
