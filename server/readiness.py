"""One line when the server answers, with the address that vLLM listens on."""

from __future__ import annotations

import asyncio
import ipaddress
from argparse import Namespace
from dataclasses import dataclass

import httpx

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        url: for people and clients; with a Unix socket its path, as `unix:PATH`.
        base: base URL for a client on this machine.
        socket: path of the Unix socket, None for TCP.
    """

    url: str
    base: str
    socket: str | None = None


def address_of(args: Namespace) -> Address:
    """The address among vLLM's parsed arguments: host, port, `--uds`, `--ssl-certfile`."""
    scheme = "https" if args.ssl_certfile else "http"
    if args.uds:
        return Address(f"unix:{args.uds}", f"{scheme}://localhost", args.uds)
    url = f"{scheme}://{_reachable(args.host)}:{args.port}"
    return Address(url, url)


def _reachable(host: str | None) -> str:
    """A host that this machine can connect to: wildcards become loopback, IPv6 gets its brackets."""
    try:
        ip = ipaddress.ip_address(host or "0.0.0.0")
    except ValueError:
        return str(host)
    if ip.is_unspecified:
        ip = ipaddress.ip_address("127.0.0.1" if ip.version == 4 else "::1")
    return f"[{ip}]" if ip.version == 6 else str(ip)


async def announce(address: Address, note: str, page: str | None = None) -> None:
    """Print that the server is ready as soon as it answers at its address.

    Args:
        address: see `address_of`.
        note: appended to the line.
        page: path of a page for people, named in a line of its own; None for no such line.
    """
    transport = httpx.AsyncHTTPTransport(verify=False, uds=address.socket)
    async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
        while not await _answers(client, address.base):
            await asyncio.sleep(POLL_SECONDS)
    print(f"vllm-prune is ready: {address.url}{note}", flush=True)
    if page is not None and address.socket is None:
        print(f"vllm-prune playground: {address.url}{page}", flush=True)


async def _answers(client: httpx.AsyncClient, base: str) -> bool:
    try:
        return (await client.get(f"{base}/health/live")).status_code == 200
    except httpx.HTTPError:
        return False
