#!/usr/bin/env python3
"""Build the browser page from playground/ into server/playground/dist, which is committed.

`--check` builds into a temporary folder and compares byte for byte, so that the committed bundle is what the sources
say. Without Node the check is left out and says so: serving and installing need no Node.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "playground"
BUNDLE = ROOT / "server" / "playground" / "dist"
OLDEST_NODE = (20, 19)
SECONDS = 300


UNREACHABLE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH")


class BuildError(Exception):
    """What has to change before the bundle can be built or is right."""


class NoPackages(BuildError):
    """npm does not reach its registry."""


def missing_node() -> str | None:
    """Why the page cannot be built here, None where it can."""
    if not (shutil.which("node") and shutil.which("npm")):
        return "no node and npm on the PATH"
    version = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip()
    numbers = tuple(int(part) for part in version.removeprefix("v").split(".")[:2] if part.isdigit())
    if numbers < OLDEST_NODE:
        return f"node {version} is older than {'.'.join(map(str, OLDEST_NODE))}"
    return None


def run(command: list[str], **environment: str) -> None:
    """Run a command in playground/; its output is shown where it fails."""
    done = subprocess.run(
        command, cwd=SOURCES, env={**os.environ, **environment}, capture_output=True, text=True, timeout=SECONDS
    )
    if done.returncode != 0:
        raise BuildError(f"{done.stdout}{done.stderr}\n{' '.join(command)} failed in {SOURCES}")


def install() -> None:
    """Install what the lock file names, unless it is there."""
    stamp, lock = SOURCES / "node_modules" / ".package-lock.stamp", SOURCES / "package-lock.json"
    if stamp.is_file() and stamp.read_bytes() == lock.read_bytes():
        return
    try:
        run(["npm", "ci", "--ignore-scripts"])
    except BuildError as error:
        if any(code in str(error) for code in UNREACHABLE):
            raise NoPackages("npm does not reach its registry") from None
        raise
    stamp.write_bytes(lock.read_bytes())


def build(target: Path) -> None:
    """Check formatting and types, and write the bundle."""
    install()
    run(["npm", "run", "--silent", "check"])
    run(["npm", "run", "--silent", "build"], PLAYGROUND_OUT=str(target))


def files(folder: Path) -> set[str]:
    """Files below a folder, by their path in it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def differences(built: Path, committed: Path) -> list[str]:
    """Files that are missing, too many, or different."""
    ours, theirs = files(built), files(committed)
    changed = [name for name in ours & theirs if not filecmp.cmp(built / name, committed / name, shallow=False)]
    return sorted([*(ours ^ theirs), *changed])


def check() -> None:
    """Build anew and compare."""
    with tempfile.TemporaryDirectory(prefix="vllm-prune-playground-") as folder:
        target = Path(folder) / "dist"
        build(target)
        if different := differences(target, BUNDLE):
            raise BuildError(
                f"server/playground/dist is not what playground/ builds: {', '.join(different)}\n"
                "Run python scripts/build_playground.py and commit the result."
            )


def main(argv: list[str] | None = None) -> int:
    """Build or check; returns the exit status."""
    parser = argparse.ArgumentParser(description="Build the playground's bundle.")
    parser.add_argument("--check", action="store_true", help="compare with the committed bundle and change nothing")
    options = parser.parse_args(argv)
    reason = missing_node()
    if reason and options.check:
        print(f"the playground's bundle is not checked: {reason}", file=sys.stderr)
        return 0
    try:
        if reason:
            raise BuildError(f"{reason}; install Node {'.'.join(map(str, OLDEST_NODE))} or newer")
        if options.check:
            check()
        else:
            build(BUNDLE)
    except NoPackages as error:
        print(f"the playground's bundle is not {'checked' if options.check else 'built'}: {error}", file=sys.stderr)
        return 0 if options.check else 1
    except (BuildError, subprocess.TimeoutExpired) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
