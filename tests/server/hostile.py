"""A real HTTP server on loopback that answers as hostile hosts do, and counts who came."""

from __future__ import annotations

import datetime
import gzip
import ipaddress
import ssl
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from .running import Running

ENDLESS = 64 << 20
"""Where an endless answer ends after all, so that a fetcher without limits fails a test and not the machine."""


class HostileHost(Running):
    """A server; use as a context manager.

    Args:
        files: body by path.
        address: loopback address to listen on.
        certificate: PEM file with key and certificate, for TLS.

    Attributes:
        seen: path, Host header and local address of every request.
    """

    def __init__(
        self, files: Mapping[str, bytes] | None = None, address: str = "127.0.0.1", certificate: Path | None = None
    ) -> None:
        self.files = dict(files or {})
        self.seen: list[tuple[str, str, str]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                owner.seen.append((self.path, self.headers["Host"], self.connection.getsockname()[0]))
                self.close_connection = True
                owner._answer(self)

            def log_message(self, *args: object) -> None:
                pass

        class Host(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self._server = Host((address, 0), Handler)
        self.scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self.scheme = "https"
        self.port = int(self._server.server_address[1])

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """URL of a path under a host's name."""
        return f"{self.scheme}://{host}:{self.port}{path}"

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        try:
            if parts.path in self.files:
                _head(request, 200, {"Content-Length": str(len(self.files[parts.path]))})
                request.wfile.write(self.files[parts.path])
            else:
                TRICKS[parts.path.split("/")[1]](request, query)
        except (ConnectionError, ssl.SSLError, TimeoutError):
            pass


def _head(request: BaseHTTPRequestHandler, status: int, headers: Mapping[str, str]) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.end_headers()


def _redirect(request: BaseHTTPRequestHandler, query: dict[str, str]) -> None:
    headers = {"Content-Length": "0"} | ({"Location": query["to"]} if "to" in query else {})
    _head(request, 302, headers)


def _chain(request: BaseHTTPRequestHandler, query: dict[str, str]) -> None:
    left = int(query["left"])
    _redirect(request, {"to": f"/chain?left={left - 1}&to={query['to']}" if left else query["to"]})


def _status(request: BaseHTTPRequestHandler, query: dict[str, str]) -> None:
    _head(request, int(query["code"]), {"Content-Length": "6"})
    request.wfile.write(b"secret")


def _endless(request: BaseHTTPRequestHandler, query: dict[str, str]) -> None:
    _head(request, 200, {})
    pause, chunk = float(query.get("pause", "0")), b"x" * int(query.get("chunk", "65536"))
    for _ in range(ENDLESS // 65536):
        request.wfile.write(chunk)
        time.sleep(pause)


def _zipped(request: BaseHTTPRequestHandler, query: dict[str, str]) -> None:
    _head(request, 200, {"Content-Encoding": "gzip"})
    bomb = gzip.compress(bytes(8 << 20))
    for _ in range(ENDLESS // len(bomb)):
        request.wfile.write(bomb)


def _says(request: BaseHTTPRequestHandler, query: dict[str, str]) -> None:
    _head(request, 200, {"Content-Length": query["length"]})
    request.wfile.write(b"x" * int(query["sends"]))


def _headers(request: BaseHTTPRequestHandler, query: dict[str, str]) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for i in range(10_000):
        request.wfile.write(b"X-Filler-%d: %s\r\n" % (i, b"y" * 1000))


def _silent(request: BaseHTTPRequestHandler, query: dict[str, str]) -> None:
    time.sleep(float(query["seconds"]))


TRICKS: dict[str, Callable[[BaseHTTPRequestHandler, dict[str, str]], None]] = {
    "redirect": _redirect,
    "chain": _chain,
    "status": _status,
    "endless": _endless,
    "zipped": _zipped,
    "says": _says,
    "headers": _headers,
    "silent": _silent,
}


def certificate(folder: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """A key with a certificate for a host's name, and a client context that trusts nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + signed.public_bytes(serialization.Encoding.PEM)
    path = folder / "host.pem"
    path.write_bytes(pem)
    return path, ssl.create_default_context(cadata=signed.public_bytes(serialization.Encoding.PEM).decode())


def is_loopback(text: str) -> bool:
    """Whether an address stays on this machine."""
    return ipaddress.ip_address(text).is_loopback
