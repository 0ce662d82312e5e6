"""The line that says a server is ready, at every kind of address that vLLM listens on."""

from __future__ import annotations

import asyncio
import socket
from argparse import Namespace
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from vllm_prune_server.readiness import address_of, announce


def arguments(host: str | None = None, port: int = 8000, uds: str | None = None, tls: str | None = None) -> Namespace:
    return Namespace(host=host, port=port, uds=uds, ssl_certfile=tls)


@pytest.mark.parametrize(
    ("args", "url"),
    [
        (arguments(), "http://127.0.0.1:8000"),
        (arguments("0.0.0.0", 9000), "http://127.0.0.1:9000"),
        (arguments("::"), "http://[::1]:8000"),
        (arguments("::1"), "http://[::1]:8000"),
        (arguments("gpu-7.example.com", tls="cert.pem"), "https://gpu-7.example.com:8000"),
        (arguments(uds="/run/vllm.sock"), "unix:/run/vllm.sock"),
    ],
)
def test_the_address_is_one_that_clients_can_use(args: Namespace, url: str) -> None:
    assert address_of(args).url == url


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("kind", ["tcp", "ipv6", "uds"])
async def test_it_is_printed_once_the_server_answers(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "ipv6" and not has_ipv6():
        pytest.skip("no IPv6 here")
    host = {"tcp": "127.0.0.1", "ipv6": "::1", "uds": None}[kind]
    uds = str(tmp_path / "socket") if kind == "uds" else None
    with socket.socket(socket.AF_INET6 if kind == "ipv6" else socket.AF_INET) as probe:
        probe.bind((host or "127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = address_of(arguments(host, port, uds))
    announcing = asyncio.create_task(announce(address, " (note)", "/playground"))
    await asyncio.sleep(0.3)
    assert not announcing.done()
    app = Starlette(routes=[Route("/health/live", lambda request: Response())])
    where = {"uds": uds} if uds else {"host": host, "port": port}
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", **where))
    serving = asyncio.create_task(server.serve())
    await asyncio.wait_for(announcing, 20)
    server.should_exit = True
    await serving
    page = [] if uds else [f"vllm-prune playground: {address.url}/playground"]
    assert capsys.readouterr().out.splitlines() == [f"vllm-prune is ready: {address.url} (note)", *page]
