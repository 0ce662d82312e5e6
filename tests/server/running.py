"""Python's own HTTP server in a thread, for as long as a `with` block lasts."""

from __future__ import annotations

import threading
from http.server import ThreadingHTTPServer
from types import TracebackType
from typing import TypeVar

Own = TypeVar("Own", bound="Running")


class Running:
    """Context manager around `_server`, which the subclass makes."""

    _server: ThreadingHTTPServer

    def __enter__(self: Own) -> Own:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
