"""Find the packages; all else is in pyproject.toml, which has no way to find packages under another name."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["vllm_prune", "vllm_prune.*"]),
        "vllm_prune_server",  # the directory `server`, see [tool.setuptools.package-dir]
        *(f"vllm_prune_{name}" for name in find_packages(include=["server.*"])),
    ]
)
