"""The launcher: prepares the environment, then hands over to vLLM's own `serve` command in this process."""

from __future__ import annotations

import faulthandler
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from . import compat, telemetry
from .config import ENV, ConfigError, load
from .kv.support import SCHEDULER, WORKER
from .settings.tenants import KEYS_CONFLICT

PRELOADED = "VLLM_PRUNE_PRELOADED"
URL = "VLLM_PRUNE_URL"
METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"
V2_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
MEDIA_CONNECTOR = "VLLM_MEDIA_CONNECTOR"
DEMO_NAME = "vllm-prune-demo"
DEMO_CACHE = str(1 << 30)
CPU_CACHE = "VLLM_CPU_KVCACHE_SPACE"
CPU_INFO = Path("/proc/cpuinfo")
MEMORY_FLAGS = ("--gpu-memory-utilization", "--kv-cache-memory-bytes")


class LaunchError(RuntimeError):
    """The server cannot be started; the message says what to change."""


def launch(model: str, arguments: Sequence[str], config: str | None) -> None:
    """Start the server and return when it has drained.

    Args:
        model: path or hub name.
        arguments: anything that `vllm serve` takes.
        config: the operator's configuration, or None for `VLLM_PRUNE_CONFIG` or the defaults.

    Raises:
        LaunchError: unsupported vLLM, unusable configuration, missing model.
    """
    _check(model, config)
    if load().tenants and (has_flag(arguments, "--api-key") or os.environ.get("VLLM_API_KEY")):
        raise LaunchError(KEYS_CONFLICT)
    preload()
    choose_runner()
    os.environ["VLLM_PLUGINS"] = compat.allowed_plugins(os.environ.get("VLLM_PLUGINS"))
    os.environ.setdefault(URL, _url(arguments))
    _trace_crashes()
    own_metrics = METRICS_DIR not in os.environ
    if own_metrics:
        # Engine and workers count in processes of their own; files in this directory are how they are added up.
        # Has to be set before anything imports prometheus_client.
        os.environ[METRICS_DIR] = tempfile.mkdtemp(prefix="vllm-prune-metrics-")
    try:
        choose_media_connector(arguments)
        compat.run_vllm_serve([model, *arguments, *_defaults(model, arguments), *_telemetry(arguments)])
    finally:
        if own_metrics:
            shutil.rmtree(os.environ[METRICS_DIR], ignore_errors=True)


def _check(model: str, config: str | None) -> None:
    if config is not None:
        os.environ[ENV] = str(Path(config).resolve())
    try:
        load()
        compat.check_version()
    except (ConfigError, compat.UnsupportedVersion) as error:
        raise LaunchError(str(error)) from None
    except ImportError as error:
        raise LaunchError(f"vLLM is not importable ({error}); install vllm-prune[cpu] or vllm-prune[cuda]") from None
    if (os.sep in model or model.startswith(".")) and not Path(model).is_dir():
        raise LaunchError(f"{model} is not a directory; give a checkpoint's path or a hub name")


def _defaults(model: str, arguments: Sequence[str]) -> list[str]:
    """Arguments that we add where the user gave none."""
    wanted = {
        "--worker-extension-cls": compat.EXTENSION,
        "--worker-cls": WORKER,
        "--scheduler-cls": SCHEDULER,
        "--shutdown-timeout": "30",
    }
    if is_demo(model):
        wanted |= {
            "--served-model-name": DEMO_NAME,
            "--max-model-len": "8192",
            "--limit-mm-per-prompt": '{"image": 8, "video": 4}',
        }
    if not has_flag(arguments, "--dtype"):
        wanted |= _arithmetic(model)
    if not any(has_flag(arguments, flag) for flag in MEMORY_FLAGS) and CPU_CACHE not in os.environ:
        wanted |= {"--kv-cache-memory-bytes": DEMO_CACHE} if is_demo(model) else _memory_share()
    return [text for flag, value in wanted.items() if not has_flag(arguments, flag) for text in (flag, value)]


def _arithmetic(model: str) -> dict[str, str]:
    """float32 for the demo on a processor that would emulate bfloat16; others, which need the memory, are told."""
    if _cuda() or not _emulates_bfloat16():
        return {}
    said = "this processor has no bfloat16 arithmetic, and float32 is several times faster"
    if is_demo(model):
        print(f"vllm-prune: --dtype float32, as {said}; give it to choose", flush=True)
        return {"--dtype": "float32"}
    print(f"vllm-prune: {said}, at twice the memory: --dtype float32", flush=True)
    return {}


def _emulates_bfloat16() -> bool:
    """Whether Linux lists the processor's features, and none of those that x86 and Arm have for bfloat16."""
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return False
    found = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return bool(found) and not {"avx512_bf16", "amx_bf16", "bf16"} & set(found.split())


def _memory_share() -> dict[str, str]:
    """On a CPU that others use, too: reserve what is free, where vLLM would ask for 92% of all memory or not start."""
    if _cuda():
        return {}
    memory = psutil.virtual_memory()
    if memory.available >= memory.total * 0.95:
        return {}
    share = f"{0.9 * memory.available / memory.total:.2f}"
    print(
        f"vllm-prune: --gpu-memory-utilization {share}, the share of memory that is free; give it to choose", flush=True
    )
    return {"--gpu-memory-utilization": share}


def _telemetry(arguments: Sequence[str]) -> list[str]:
    """Arguments for logs and traces as the configuration and the environment want them."""
    try:
        logs = telemetry.log_arguments(load().logging, arguments)
        traces, variables = telemetry.trace_arguments(arguments, os.environ)
    except telemetry.TelemetryError as error:
        raise LaunchError(str(error)) from None
    os.environ.update(variables)
    return logs + traces


def is_demo(model: str) -> bool:
    """Whether `model` is the checkpoint that comes with the repository."""
    path = Path(model)
    return path.parts[-2:] == ("demo_model", "checkpoint") and (path / "config.json").is_file()


def has_flag(arguments: Sequence[str], flag: str) -> bool:
    """Whether a vLLM flag is among the arguments, in either spelling (dashes or underscores, `=` or space)."""
    names = {argument.split("=", 1)[0].replace("_", "-") for argument in arguments if argument.startswith("--")}
    return flag in names


def value_of(arguments: Sequence[str], flag: str, default: str) -> str:
    """Value of `--flag value` or `--flag=value`."""
    for i, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == flag:
            return value or (arguments[i + 1] if i + 1 < len(arguments) else default)
    return default


def _url(arguments: Sequence[str]) -> str:
    host = value_of(arguments, "--host", "127.0.0.1")
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    scheme = "https" if has_flag(arguments, "--ssl-certfile") else "http"
    return f"{scheme}://{shown}:{value_of(arguments, '--port', '8000')}"


def preload() -> None:
    """On a CPU, restart this process once with tcmalloc and Intel's OpenMP loaded first, where they are found."""
    if os.environ.get(PRELOADED) or _cuda():
        return
    os.environ[PRELOADED] = "1"
    already = os.environ.get("LD_PRELOAD", "")
    wanted = preload_list(already, found_libraries())
    names = ", ".join(Path(path).name for path in wanted) or "neither libtcmalloc nor libiomp5 found; slower on CPU"
    print(f"vllm-prune: preloading {names}", flush=True)
    if wanted != split(already) and sys.platform == "linux":
        os.environ["LD_PRELOAD"] = ":".join(wanted)
        os.execv(sys.executable, [sys.executable, "-m", "vllm_prune.cli", *sys.argv[1:]])


def found_libraries() -> list[str]:
    """Libraries that make vLLM faster on a CPU, as far as they are installed."""
    return [path for path in (_tcmalloc(), _openmp()) if path]


def split(paths: str) -> list[str]:
    """Entries of `LD_PRELOAD`, which takes colons and spaces between them."""
    return paths.replace(":", " ").split()


def preload_list(already: str, found: Sequence[str]) -> list[str]:
    """Entries of `LD_PRELOAD` to start with: what the user set, and each found library whose kind is not yet there.

    vLLM refuses to start with two OpenMP runtimes, so a user's own one (GNU's too) keeps its place.
    """
    entries = split(already)
    kinds = (("libtcmalloc",), ("libiomp", "libomp", "libgomp"))
    missing = [kind for kind in kinds if not any(name in entry for name in kind for entry in entries)]
    return [path for path in found if any(name in path for kind in missing for name in kind)] + entries


def choose_runner() -> None:
    """On CUDA, select the model runner that KV eviction has an adapter for, unless the user has chosen."""
    if V2_RUNNER not in os.environ and _cuda():
        os.environ[V2_RUNNER] = "0"
        print(
            f"vllm-prune: {V2_RUNNER}=0, as KV eviction runs on model runner V1; set it to 1 to do without", flush=True
        )


def choose_media_connector(arguments: Sequence[str]) -> None:
    """Let vLLM load media through our connector, unless the user has chosen, and start what it decodes with."""
    if os.environ.setdefault(MEDIA_CONNECTOR, compat.MEDIA_CONNECTOR) != compat.MEDIA_CONNECTOR:
        print(f"vllm-prune: {MEDIA_CONNECTOR} is set; the section `media` guards nothing", flush=True)
    elif not has_flag(arguments, "--api-server-count"):
        from vllm_prune_server.media_decode import pool

        # While the engine loads: later, the first image would wait for it.
        pool().start()


def _trace_crashes() -> None:
    """Most crashes in native code leave nothing in the log otherwise; vLLM forks some processes and spawns others."""
    if os.environ.setdefault("PYTHONFAULTHANDLER", "1") and sys.stderr is not None:
        faulthandler.enable()


def _cuda() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cuda())


def _tcmalloc() -> str | None:
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"):
        for name in ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4"):
            if (Path(folder) / name).exists():
                return str(Path(folder) / name)
    return None


def _openmp() -> str | None:
    roots = {Path(sys.prefix) / "lib", Path(sysconfig.get_path("purelib"))}
    return next((str(path) for root in roots for path in sorted(root.glob("libiomp5.so"))), None)
