"""Step `machine`: what is installed, whether vLLM finds the plugin, and the two speeds that a bound is made of."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata, util
from pathlib import Path
from typing import Any

from .plugin_site import ROOT
from .runner import Context

OPTIONAL = ("vllm", "torch", "transformers", "triton", "av", "cv2", "flashinfer", "vllm.vllm_flash_attn", "flash_attn")
MODULES = {"pillow": "PIL", "pyyaml": "yaml", "prometheus-client": "prometheus_client", "pydantic>=2": "pydantic",
           "huggingface-hub": "huggingface_hub", "av>=14": "av"}  # fmt: skip
DOCTOR = """
import json
from vllm_prune.cli.doctor import examine
print(json.dumps([[check.name, check.good, check.detail] for check in examine()]))
"""


def run(context: Context) -> None:
    """Look at the machine; what is missing is a problem, as no server would start."""
    context.result["packages"] = {name: _version(name) for name in OPTIONAL}
    with context.part("requirements"):
        missing = _missing()
        context.result["missing"] = missing
        if missing:
            raise RuntimeError(f"not importable: {', '.join(missing)}; carry them beside vLLM")
    with context.part("device"):
        context.result["device"] = _nvidia() if context.scale.cuda else "no CUDA device"
    with context.part("plugin"):
        groups = {group: _entry_points(group) for group in ("vllm.general_plugins", "vllm.endpoint_plugins")}
        context.result["plugins"] = groups
        if not all("vllm_prune" in names for names in groups.values()):
            raise RuntimeError("vLLM would not find the plugin: start benchmarks/gpu.sh, which puts it on PYTHONPATH")
    with context.part("doctor"):
        checks = json.loads(_python("-c", DOCTOR, seconds=context.clock.left).splitlines()[-1])
        context.result["doctor"] = [{"check": name, "good": good, "detail": text} for name, good, text in checks]
        if bad := [f"{name}: {text}" for name, good, text in checks if not good]:
            raise RuntimeError("; ".join(bad))
    with context.part("speeds"):
        size = "full" if context.scale.cuda and context.scale.name == "full" else "tiny"
        line = _python("-m", "benchmarks.speed.micro", size, seconds=context.clock.left).splitlines()[-1]
        context.result["speeds"] = context.shared["speeds"] = json.loads(line)


def _version(module: str) -> str | None:
    """Version of what is importable, None for what is not."""
    try:
        if util.find_spec(module) is None:
            return None
    except ImportError:
        return None
    distributions = metadata.packages_distributions().get(module.partition(".")[0], [])
    return ", ".join(f"{name} {metadata.version(name)}" for name in dict.fromkeys(distributions)) or "no metadata"


def _missing() -> list[str]:
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    modules = [MODULES.get(one, one.partition(">")[0].replace("-", "_")) for one in requirements]
    return [name for name in [*modules, "cv2", "vllm"] if util.find_spec(name) is None]


def _nvidia() -> dict[str, Any]:
    query = "name,driver_version,memory.total,memory.used,clocks.max.sm"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    compiler = shutil.which("nvcc")
    return dict(zip(query.split(","), (part.strip() for part in text.split(",")), strict=True)) | {"nvcc": compiler}


def _entry_points(group: str) -> list[str]:
    """Names that a fresh interpreter, as a server is one, finds."""
    code = f"from importlib.metadata import entry_points; print(*[e.name for e in entry_points(group={group!r})])"
    return _python("-c", code, seconds=60).split()


def _python(*arguments: str, seconds: float) -> str:
    """Standard output of an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=max(1.0, seconds), cwd=Path.cwd()
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-3000:]}")
    return done.stdout
