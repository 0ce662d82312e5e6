"""Adapter to prometheus_client's files: a full disk costs numbers, never the process.

The library maps sparse files into memory. The first write to a page that the file system has no room for then
ends the process with SIGBUS, which no handler of ours could turn into an answer. So pages are reserved when a file is
made, and where there is no room the numbers stay in memory, unseen by `/metrics`.

A folder on memory-backed storage would not do instead. tmpfs can be full, too, and ends the process in the same way
(a test shows it): a container's /dev/shm has 64 MiB by default, which vLLM's queues between processes share.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import Any

from vllm.logger import init_logger

from .signatures import METRICS_SIGNATURES, holder, signature_problems

RESERVED = 1 << 20
"""Bytes per file; ours and vLLM's series fill about a tenth of it."""
ENTRY = 40
"""Bytes of a value beside its name, at most."""

logger = init_logger("vllm.vllm_prune")


def reserve_metric_files() -> bool:
    """Make prometheus_client reserve what it writes to; has to run before the first metric. Idempotent.

    Returns:
        Whether it does; an unknown prometheus_client is left as it is.
    """
    if problems := signature_problems(METRICS_SIGNATURES):
        logger.warning("a full disk may end this process: %s", "; ".join(problems))
        return False
    values: Any = holder("MmapedDict")
    if not hasattr(values.MmapedDict, "vllm_prune_reserves"):
        values.MmapedDict = _reserving(values.MmapedDict)
    return True


def _reserving(base: Any) -> Any:
    class Reserving(base):
        vllm_prune_reserves = True
        _m: mmap.mmap
        _used: int
        _capacity: int

        def __init__(self, filename: str, read_mode: bool = False) -> None:
            super().__init__(filename if read_mode else _reserved(filename), read_mode)

        def _init_value(self, key: str) -> None:
            while self._used + len(key.encode()) + ENTRY > self._capacity:
                self._grow()
            super()._init_value(key)

        def _grow(self) -> None:
            twice = 2 * self._capacity
            if _allocate(self._f.fileno(), self._capacity, twice - self._capacity):
                self._f.truncate(twice)
                self._m = mmap.mmap(self._f.fileno(), twice)
            else:
                logger.warning("no room for more metrics in %s; new ones are not exported", self._fname)
                private = mmap.mmap(-1, twice)
                private[: self._capacity] = self._m[:]
                self._m = private
            self._capacity = twice

    return Reserving


def _reserved(filename: str) -> str:
    """The name of a file whose pages exist: the one given, or one in memory where there is no room for it."""
    try:
        file = os.open(filename, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
    else:
        try:
            size = os.fstat(file).st_size
            if _allocate(file, 0, max(size, RESERVED)):
                return filename
            # Whoever adds the files up trips over an empty one.
            os.truncate(file, size) if size else os.unlink(filename)
        finally:
            os.close(file)
    logger.warning("no room for metrics in %s; this process exports none of that kind", filename)
    return f"/proc/self/fd/{_in_memory(os.path.basename(filename))}"


def _in_memory(name: str) -> int:
    # Stays open: the name that is returned leads through it.
    file = os.memfd_create(name)
    os.truncate(file, RESERVED)
    return file


def _allocate(file: int, start: int, length: int) -> bool:
    try:
        os.posix_fallocate(file, start, length)
    except OSError as error:
        # Other errors mean that this file system cannot reserve; then the library's own way has to do.
        return error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return True
