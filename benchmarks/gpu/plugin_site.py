"""Makes the project importable, with its entry points, where nothing can be installed: links and a dist-info.

vLLM finds plugins through the metadata of installed distributions. A folder on PYTHONPATH that holds a `*.dist-info`
with `entry_points.txt` is one, so neither pip nor a network is needed.
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"vllm_prune": "vllm_prune", "vllm_prune_server": "server"}


def lay_out(folder: Path) -> Path:
    """Write the folder for PYTHONPATH anew and return it."""
    shutil.rmtree(folder, ignore_errors=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    for name, place in PACKAGES.items():
        (folder / name).symlink_to(ROOT / place)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        + "".join(f"Requires-Dist: {requirement}\n" for requirement in project["dependencies"])
    )
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    (info / "entry_points.txt").write_text(
        "\n".join(
            f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in names.items())
            for group, names in groups.items()
        )
    )
    return folder


if __name__ == "__main__":
    print(lay_out(Path(sys.argv[1])))
