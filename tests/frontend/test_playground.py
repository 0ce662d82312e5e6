"""The route of the playground: policy, types, caching, and nothing beside its files."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from vllm_prune_server.playground import routes

from .conftest import configured

FILES = {
    "index.html": ("<!doctype html>", "text/html; charset=utf-8"),
    "playground.js": ("void 0", "text/javascript; charset=utf-8"),
    "index.css": ("body{}", "text/css; charset=utf-8"),
    "icon.svg": ("<svg/>", "image/svg+xml"),
    "examples/clip.mp4": ("0123456789", "video/mp4"),
    "examples/examples.json": ("[]", "application/json"),
}
SAFE = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src blob:; connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@pytest_asyncio.fixture
async def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    dist = tmp_path / "dist"
    for name, (text, _) in FILES.items():
        (dist / name).parent.mkdir(parents=True, exist_ok=True)
        (dist / name).write_text(text)
    (tmp_path / "secret.json").write_text("secret")
    (dist / "notes.md").write_text("not for the page")
    (dist / "link.json").symlink_to(tmp_path / "secret.json")
    monkeypatch.setattr(routes, "DIST", dist)
    routes._files.cache_clear()
    app = FastAPI()
    app.include_router(routes.router)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client
    routes._files.cache_clear()


async def test_files_with_their_types_and_the_policy(page: httpx.AsyncClient) -> None:
    for name, (text, kind) in FILES.items():
        for path in [f"/playground/{name}", *(["/playground"] if name == "index.html" else [])]:
            answer = await page.get(path)
            assert (answer.status_code, answer.text, answer.headers["content-type"]) == (200, text, kind)
            assert SAFE.items() <= dict(answer.headers).items()


async def test_a_browser_that_has_it_is_told_so(page: httpx.AsyncClient) -> None:
    first = await page.get("/playground")
    again = await page.get("/playground", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert SAFE.items() <= dict(again.headers).items()
    assert (await page.get("/playground", headers={"if-none-match": '"another"'})).status_code == 200


async def test_parts_of_a_video_and_heads(page: httpx.AsyncClient) -> None:
    part = await page.get("/playground/examples/clip.mp4", headers={"range": "bytes=2-4"})
    assert (part.status_code, part.text) == (206, "234")
    head = await page.head("/playground")
    assert (head.status_code, head.content) == (200, b"")


async def test_a_slash_at_the_end_goes_back(page: httpx.AsyncClient) -> None:
    answer = await page.get("/playground/")
    assert (answer.status_code, answer.headers["location"]) == (307, "../playground")


@pytest.mark.parametrize(
    "name",
    [
        "../secret.json", "%2e%2e/secret.json", "..%2fsecret.json", "examples/../../secret.json", "/etc/passwd",
        "%2fetc%2fpasswd", "link.json", "notes.md", "examples", "none.js", "x%00.json", "a" * 5000 + ".js",
    ],
)  # fmt: skip
async def test_nothing_else_is_there(page: httpx.AsyncClient, name: str) -> None:
    transport: Any = page._transport
    # The client would tidy the path up; a hostile one does not.
    request = httpx.Request("GET", "http://server/playground/x")
    request.url = httpx.URL(scheme="http", host="server", raw_path=f"/playground/{name}".encode())
    answer = await transport.handle_async_request(request)
    body = await answer.aread()
    assert answer.status_code == 404
    assert b"secret" not in body


PATHS = ("/playground", "/playground/", "/playground/playground.js", "/playground/examples/page.png")


@pytest.mark.parametrize("enabled", [True, False])
async def test_off_means_404_and_nothing_loaded(tmp_path: Path, enabled: bool) -> None:
    from .engine import arguments, front_end

    module = "vllm_prune_server.playground.routes"
    loaded = sys.modules.pop(module)
    try:
        with configured(tmp_path, f"playground: {{enabled: {str(enabled).lower()}}}"):
            async with front_end(arguments()) as (client, _):
                assert (module in sys.modules) == enabled
                answers = [await client.get(path, follow_redirects=False) for path in PATHS]
                assert [one.status_code for one in answers] == ([200, 307, 200, 200] if enabled else [404] * 4)
                assert all(("content-security-policy" in one.headers) == enabled for one in answers)
                assert (module in sys.modules) == enabled
    finally:
        sys.modules[module] = loaded
        importlib.import_module("vllm_prune_server.playground").routes = loaded


async def test_the_page_costs_nothing_until_somebody_opens_it() -> None:
    """Including it in a server opens no file of its bundle and starts no thread and no task."""
    opened: list[str] = []
    watching = True

    def hook(event: str, values: tuple[Any, ...]) -> None:
        if watching and event == "open" and "playground/dist" in str(values[0]):
            opened.append(str(values[0]))

    sys.addaudithook(hook)
    try:
        before = set(threading.enumerate()), asyncio.all_tasks()
        fresh = importlib.util.module_from_spec(routes.__spec__)  # type: ignore[arg-type]
        routes.__spec__.loader.exec_module(fresh)  # type: ignore[union-attr]
        app = FastAPI()
        app.include_router(fresh.router)
        await asyncio.sleep(0.05)
        assert (set(threading.enumerate()), asyncio.all_tasks()) == before
        assert opened == []
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            assert (await client.get("/playground")).status_code == 200
        assert len(opened) == 1, "the hook sees files of the page"
    finally:
        watching = False
