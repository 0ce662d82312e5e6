"""`GET /playground` and the files below it, under a policy that lets the page talk to nobody but this server."""

from __future__ import annotations

import stat
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles

DIST = Path(__file__).parent / "dist"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src blob:; "
        "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Names carry no hash: a browser has to ask, and is told 304.
    "Cache-Control": "no-cache",
}
# Those of the machine's own table may be other ones, and with nosniff a script of the wrong type does not run.
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".mp4": "video/mp4",
}
router = APIRouter(include_in_schema=False)


@cache
def _files() -> StaticFiles:
    return StaticFiles(directory=DIST, check_dir=False)


@router.api_route("/playground", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """The page."""
    return await answer("index.html", request)


@router.api_route("/playground/{name:path}", methods=["GET", "HEAD"])
async def file(name: str, request: Request) -> Response:
    """A file of the page's."""
    if not name:
        # Addresses in the page are relative to its own without a slash; relative here, too, for prefixes of proxies.
        return RedirectResponse("../playground", headers=HEADERS)
    return await answer(name, request)


async def answer(name: str, request: Request) -> Response:
    """A file of the bundle, or 304 where the client has it; 404 for anything else."""
    kind = MEDIA_TYPES.get(Path(name).suffix)
    try:
        path, file_stat = _files().lookup_path(name) if kind and "\0" not in name else ("", None)
    except (OSError, ValueError):
        path, file_stat = "", None
    if kind is None or file_stat is None or not stat.S_ISREG(file_stat.st_mode):
        raise HTTPException(404, "this is no file of the playground")
    response = _files().file_response(path, file_stat, request.scope)
    response.headers.update(HEADERS)
    if "content-type" in response.headers:
        response.headers["content-type"] = kind
    return response
