"""What the launcher finds out about this machine: libraries to preload, allocator, bfloat16 arithmetic, memory."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import psutil

PRELOADED = "VLLM_PRUNE_PRELOADED"
MALLOC_SWITCH = "VLLM_PRUNE_MALLOC"
MALLOC_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
ALLOCATORS = ("libtcmalloc", "libjemalloc", "libmimalloc")
KEPT_SHARE = 8
"""Freed memory beyond one part in so many of the machine's goes back to the kernel."""
DEMO_CACHE = str(1 << 30)
CPU_CACHE = "VLLM_CPU_KVCACHE_SPACE"
CPU_INFO = Path("/proc/cpuinfo")
MEMORY_FLAGS = ("--gpu-memory-utilization", "--kv-cache-memory-bytes")


def arithmetic(is_demo: bool) -> dict[str, str]:
    """float32 for the demo where the processor would emulate bfloat16; other models, larger, get a message only."""
    if has_cuda() or not _emulates_bfloat16():
        return {}
    said = "this processor has no bfloat16 arithmetic, and float32 is several times faster"
    if is_demo:
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
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return bool(features) and not {"avx512_bf16", "amx_bf16", "bf16"} & set(features.split())


def memory_share() -> dict[str, str]:
    """On a CPU: reserve the memory that is free, where vLLM would reserve 92% of all memory or not start."""
    if has_cuda():
        return {}
    memory = psutil.virtual_memory()
    if memory.available >= memory.total * 0.95:
        return {}
    share = f"{0.9 * memory.available / memory.total:.2f}"
    print(
        f"vllm-prune: --gpu-memory-utilization {share}, the share of memory that is free; give it to choose", flush=True
    )
    return {"--gpu-memory-utilization": share}


def preload() -> None:
    """On a CPU, restart this process once with tcmalloc and Intel's OpenMP loaded first, where they are found."""
    if os.environ.get(PRELOADED) or has_cuda():
        return
    os.environ[PRELOADED] = "1"
    already = os.environ.get("LD_PRELOAD", "")
    wanted = preload_list(already, installed_libraries())
    names = ", ".join(Path(path).name for path in wanted) or "neither libtcmalloc nor libiomp5 found; slower on CPU"
    print(f"vllm-prune: preloading {names}", flush=True)
    if wanted != split(already) and sys.platform == "linux":
        os.environ["LD_PRELOAD"] = ":".join(wanted)
        os.execv(sys.executable, [sys.executable, "-m", "vllm_prune.cli.main", *sys.argv[1:]])


def reuse_freed_memory() -> None:
    """On a CPU without another allocator, let glibc keep what the engine frees, and say so.

    By default it maps every allocation above 32 MiB anew: a vision tower's activations then come in pages that the
    kernel has to fill with zeros, layer by layer. glibc reads these variables when a process starts, so they take
    effect in the engine and its workers, and not in this process.
    """
    if has_cuda() or not _uses_glibc_malloc() or os.environ.get(MALLOC_SWITCH) == "0":
        return
    if any(name in os.environ for name in MALLOC_VARIABLES):
        return
    kept = psutil.virtual_memory().total // KEPT_SHARE
    # A threshold above 32 MiB cannot be set; without mappings every size is taken from the heap.
    os.environ |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(kept)}
    print(
        f"vllm-prune: no tcmalloc; the C library keeps up to {kept / (1 << 30):.1f} GiB of freed memory for reuse; "
        f"{MALLOC_SWITCH}=0 leaves it as it is",
        flush=True,
    )


def _uses_glibc_malloc() -> bool:
    """Whether processes that this one starts allocate by glibc."""
    preloaded = os.environ.get("LD_PRELOAD", "")
    is_glibc = sys.platform == "linux" and "CS_GNU_LIBC_VERSION" in os.confstr_names
    return is_glibc and not any(name in preloaded for name in ALLOCATORS)


def installed_libraries() -> list[str]:
    """Libraries that make vLLM faster on a CPU, as far as they are installed."""
    return [path for path in (_tcmalloc(), _openmp()) if path]


def split(paths: str) -> list[str]:
    """Entries of `LD_PRELOAD`, which takes colons and spaces between them."""
    return paths.replace(":", " ").split()


def preload_list(already: str, libraries: Sequence[str]) -> list[str]:
    """Entries of `LD_PRELOAD` to start with: what the user set, and each library whose kind is not yet there.

    vLLM refuses to start with two OpenMP runtimes, so one that the user set (GNU's too) keeps its place.
    """
    entries = split(already)
    kinds = (("libtcmalloc",), ("libiomp", "libomp", "libgomp"))
    missing = [kind for kind in kinds if not any(name in entry for name in kind for entry in entries)]
    return [path for path in libraries if any(name in path for kind in missing for name in kind)] + entries


def has_cuda() -> bool:
    """Whether vLLM runs on CUDA here."""
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
