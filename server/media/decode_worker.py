"""The decoding processes: one parent that has imported vLLM's media IO, and children forked from it in milliseconds.

Run as a module with the number of a socket; ends when the server's end of it closes. The parent never looks at
media. A child decodes one file after another under limits of memory, processor time and output, and can be
killed at any moment: it holds nothing that anybody waits for.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import pickle
import resource
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_prune.config.media import Media
from vllm_prune.vllm_compat.media_budgets import RequestLimitExceeded, count_of

CONTROL = 4096
FILES = 64
"""Open files that a child may hold."""
_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 32 << 20
_HEADER_ROOM = 1 << 24


@dataclass(frozen=True)
class Job:
    """One file to decode; the file itself travels as sealed memory.

    Attributes:
        media_io: vLLM's media IO with the options of the request.
        kind: media type of a data URL where it changes how the file is read, else empty.
        limits: the operator's section.
    """

    media_io: Any
    kind: str
    limits: Media


def main(control: socket.socket) -> None:
    """Fork a child for every socket that arrives, and kill on request, until the server is gone."""
    children: set[int] = set()
    while True:
        command, descriptors, _, _ = socket.recv_fds(control, CONTROL, 1)
        if not command:
            return
        _reap(children)
        if command.startswith(b"kill "):
            pid = int(command[5:])
            # A child that has been waited for may have left its number to a stranger.
            if pid in children:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                children.discard(pid)
            control.send(b"done")
            continue
        limits: Media = pickle.loads(command)
        pid = os.fork()
        if pid == 0:
            control.close()
            _become_child(socket.socket(fileno=descriptors[0]), limits)
        for descriptor in descriptors:
            os.close(descriptor)
        children.add(pid)
        control.send(str(pid).encode())


def _reap(children: set[int]) -> None:
    for pid in list(children):
        if os.waitpid(pid, os.WNOHANG)[0]:
            children.discard(pid)


def _become_child(channel: socket.socket, limits: Media) -> None:
    status = 1
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # Images come and go by the megabyte: giving each back to the kernel costs as much as decoding it.
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        _confine(limits)
        while _serve_one(channel):
            pass
        status = 0
    finally:
        os._exit(status)


def _confine(limits: Media) -> None:
    """What holds for the whole life of a child."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    output = limits.max_decoded_bytes + _HEADER_ROOM
    memory = _address_space() + limits.decode_memory_bytes
    for kind, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, output),
        (resource.RLIMIT_NOFILE, FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def _serve_one(channel: socket.socket) -> bool:
    from . import wire

    message, descriptor = wire.receive(channel)
    if not message or descriptor is None:
        return False
    job: Job = pickle.loads(message)
    _limit_processor(job.limits)
    reason, detail, result = _guarded(lambda: _decode(job, descriptor))
    used = count_of(job.media_io).used
    if result is None:
        wire.send(channel, f"{reason}\n{detail}".encode(errors="replace")[: wire.MESSAGE])
    else:
        try:
            wire.send(channel, f"ok\n{used}\n{detail}".encode(), result)
        finally:
            os.close(result)
    return True


def _decode(job: Job, descriptor: int) -> tuple[int, str]:
    from . import wire
    from .decoders import load

    with wire.view(descriptor, sys.maxsize) as memory:
        data = bytes(memory)
    result, remark = load(job.media_io, data, job.kind, job.limits)
    return wire.pack(result), remark


def _guarded(work: Callable[[], tuple[int, str]]) -> tuple[str, str, int | None]:
    """Reason of a refusal or empty, text for the server's log, and the result or None."""
    from .errors import Refused

    try:
        result, remark = work()
        return "", remark, result
    except Refused as error:
        return error.reason, "", None
    except RequestLimitExceeded:
        return "request_decoded_bytes", "", None
    except MemoryError:
        return "memory", "", None
    except OSError as error:
        reason = {errno.EFBIG: "decoded_bytes", errno.ENOMEM: "memory"}.get(error.errno or 0, "malformed")
        return reason, repr(error), None
    except Exception as error:  # whatever a decoder makes of a hostile file
        # OpenCV's code for memory that it could not get.
        return ("memory" if getattr(error, "code", None) == -4 else "malformed"), repr(error)[:500], None


def _limit_processor(limits: Media) -> None:
    """Twice the wall-clock limit, as decoders use several threads; the soft limit counts from the child's start."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = usage.ru_utime + usage.ru_stime
    resource.setrlimit(resource.RLIMIT_CPU, (int(used + 2 * limits.decode_seconds) + 1, resource.RLIM_INFINITY))


def _prepare() -> None:
    """Import what children need and use it once, so that no child has to."""
    from io import BytesIO

    from PIL import Image
    from vllm.multimodal.media import ImageMediaIO

    from vllm_prune.visual.frontend import video_loader  # noqa: F401

    from . import decoders, wire

    data = BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    descriptor = wire.pack(decoders.load(ImageMediaIO(), data.getvalue(), "", Media())[0])
    os.close(descriptor)
    # Children share these pages for as long as nobody writes to them.
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    # A group of its own, so that signals for the server's group leave decoding to the server; no session of its own:
    # Linux shares out the cores by session, and beside the spinning engine of another one a decoder waits for seconds.
    os.setpgid(0, 0)
    with contextlib.suppress(KeyboardInterrupt):
        _prepare()
        main(socket.socket(fileno=int(sys.argv[1])))
