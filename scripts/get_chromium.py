#!/usr/bin/env python3
"""Install Debian's Chromium, in which the playground is tested and its screenshots are made.

Nothing is done where a Chromium is on the PATH. Without apt-get or the right to use it this says so, and the tests
that need a browser are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome")
# A bare machine has no font, and without one the browser draws no text.
PACKAGES = ("chromium", "fonts-dejavu-core")
SECONDS = 600


def apt_get(*arguments: str) -> int:
    """Status of an apt-get that asks nothing; 127 where it does not run."""
    command = ["apt-get", "-qq", "-y", "-o", "DPkg::Lock::Timeout=120", *arguments]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        return subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, timeout=SECONDS).returncode
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        print(error, file=sys.stderr)
        return 127


def main() -> None:
    """Install it unless it is there."""
    if any(map(shutil.which, NAMES)):
        return
    wanted = f"apt-get install --no-install-recommends {' '.join(PACKAGES)}"
    if not shutil.which("apt-get") or os.geteuid() != 0:
        print(f"no Chromium, so the playground is not tested; on Debian, as root: {wanted}", file=sys.stderr)
        return
    print("installing Chromium for the tests of the playground", file=sys.stderr)
    install = ("install", "--no-install-recommends", *PACKAGES)
    # A fresh machine has no lists of packages yet, or old ones.
    if apt_get("update") != 0 or apt_get(*install) != 0:
        print(f"no Chromium, so the playground is not tested; failed: {wanted}", file=sys.stderr)


if __name__ == "__main__":
    main()
