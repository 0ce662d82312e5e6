"""The server's side of the decoding processes: starts them, hands files over, kills what takes too long."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from vllm_prune.config.load import configuration
from vllm_prune.config.media import Media
from vllm_prune.vllm_compat import media_budgets

from .errors import MESSAGES, Refused
from .fair_executor import FairExecutor, ShareKey

logger = logging.getLogger("vllm.vllm_prune")
START_SECONDS = 180.0
_PARENT_MODULE = "vllm_prune_server.media.decode_worker"
# All that a decoder may see of the server's environment; keys and tokens are not among it.
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "TMPDIR", "VIRTUAL_ENV")
_OUR_PREFIX = "VLLM_PRUNE_"
_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# A file may name streams on the network, as session descriptions do; a decoder reads nothing but the file.
_DECODERS = {"OPENCV_FFMPEG_LOGLEVEL": "-8", "OPENCV_FFMPEG_CAPTURE_OPTIONS": "protocol_whitelist;none"}
_QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "CUDA_VISIBLE_DEVICES": ""}


class Unavailable(RuntimeError):
    """The decoding processes cannot be started."""


@dataclass
class Worker:
    """A decoding process."""

    pid: int
    channel: socket.socket


class Forker:
    """The process that decoding processes are forked from."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(self) -> None:
        """Start the process unless it runs; it needs some seconds until it answers, and nobody waits for it here."""
        with self._lock:
            self._ensure()

    def _ensure(self) -> socket.socket:
        if self._process is not None and self._control is not None and self._process.poll() is None:
            return self._control
        self._stop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", _PARENT_MODULE, str(theirs.fileno())]
            self._process = subprocess.Popen(
                command,
                env=environment(),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        ours.settimeout(START_SECONDS)
        self._control = ours
        return ours

    def _command(self, command: bytes, descriptors: list[int]) -> bytes:
        with self._lock:
            for _ in range(2):
                control = self._ensure()
                try:
                    socket.send_fds(control, [command], descriptors)
                    if answer := control.recv(64):
                        return answer
                except OSError:
                    pass
                self._stop()
        raise Unavailable

    def fork(self, limits: Media) -> Worker:
        """A new decoding process.

        Raises:
            Unavailable: the process that forks does not start; its output says why.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                return Worker(int(self._command(pickle.dumps(limits), [theirs.fileno()])), ours)
            except BaseException:
                ours.close()
                raise

    def kill(self, worker: Worker) -> None:
        """End a decoding process at once."""
        worker.channel.close()
        with contextlib.suppress(Unavailable):
            self._command(b"kill %d" % worker.pid, [])

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._control = None

    def stop(self) -> None:
        """End the process, and with it all that were forked from it."""
        with self._lock:
            self._stop()


def environment() -> dict[str, str]:
    """Variables of a decoding process: what Python and vLLM's decoders need, one thread per library, no secret."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_ON
        or (name.startswith("VLLM_") and not name.startswith(_OUR_PREFIX) and not _is_secret(name))
    }
    return {**kept, **_THREADS, **_DECODERS, **_QUIET}


def _is_secret(name: str) -> bool:
    return any(word in name for word in ("KEY", "TOKEN", "SECRET", "PASSWORD"))


class DecodePool:
    """Decoding processes, at most `limits.workers` of them, each with a thread of the server that waits for it.

    Args:
        limits: the operator's section.
        forker: a process to fork from that others fork from too; their pool ends it.
    """

    def __init__(self, limits: Media, forker: Forker | None = None) -> None:
        self.limits = limits
        self.threads = FairExecutor(limits.workers, "vllm-prune-media", limits.max_waiting)
        self.forker = forker or Forker()
        self._ends_forker = forker is None
        self._idle: list[Worker] = []
        self._lock = threading.Lock()
        atexit.register(self.close)

    def start(self) -> None:
        """Start the parent of the processes, which takes some seconds in the background."""
        self.forker.start()

    def warm(self) -> None:
        """Have one process ready as soon as its parent is; does not wait for it."""
        self.threads.submit(ShareKey(), self._warm)

    def _warm(self) -> None:
        try:
            self._release(self.forker.fork(self.limits))
        except Unavailable:
            logger.error("the decoding processes of media do not start; their output is above")

    def _acquire(self) -> Worker:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self.forker.fork(self.limits)

    def _release(self, worker: Worker) -> None:
        with self._lock:
            self._idle.append(worker)

    def decode(self, media_io: Any, data: bytes, kind: str = "") -> Any:
        """Decode a file in a process; blocks, so call it in one of `threads`.

        Args:
            media_io: vLLM's media IO.
            data: the file.
            kind: media type of a data URL where it changes how the file is read.

        Returns:
            What `media_io` would return in this process.

        Raises:
            Refused: over a limit, malformed, or the process died over it.
            Unavailable: no process could be started.
        """
        from . import wire
        from .decode_worker import Job

        media_io, budget = media_budgets.for_decoder(media_io)
        message = pickle.dumps(Job(media_io, kind, self.limits))
        if not data or len(message) > wire.MESSAGE:
            raise Refused("malformed")
        descriptor = wire.seal([data])
        try:
            answer, result = self._exchange(message, descriptor)
        finally:
            os.close(descriptor)
        reason, _, detail = answer.decode(errors="replace").partition("\n")
        if result is None:
            raise Refused(reason if reason in MESSAGES else "crash", detail)
        used, _, remark = detail.partition("\n")
        if remark:
            logger.warning("%.200s", remark)
        memory = wire.view(result, self.limits.max_decoded_bytes)
        try:
            # What a decoding process says is not trusted, as it may have been taken over.
            media_budgets.charge(budget, max(0, int(used)))
        except media_budgets.RequestLimitExceeded:
            raise Refused("request_decoded_bytes") from None
        except ValueError:
            raise Refused("crash") from None
        return wire.unpack(memory, data)

    def _exchange(self, message: bytes, descriptor: int) -> tuple[bytes, int | None]:
        from . import wire

        # Those that died while idle are passed over: that was not this file's fault.
        for _ in range(self.limits.workers + 1):
            worker = self._acquire()
            try:
                worker.channel.settimeout(self.limits.decode_seconds)
                wire.send(worker.channel, message, descriptor)
            except OSError:
                self.forker.kill(worker)
                continue
            return self._answer(worker)
        raise Refused("crash")

    def _answer(self, worker: Worker) -> tuple[bytes, int | None]:
        from . import wire

        reason = "crash"
        try:
            answer, result = wire.receive(worker.channel)
        except TimeoutError:
            answer, result, reason = b"", None, "decode_time"
        except OSError:
            answer, result = b"", None
        # A process that ran out of memory may not have got all of it back.
        if not answer or answer.startswith(b"memory"):
            self.forker.kill(worker)
        else:
            self._release(worker)
        if not answer:
            raise Refused(reason)
        return answer, result

    def close(self) -> None:
        """End all processes."""
        self.threads.close()
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.channel.close()
        if self._ends_forker:
            self.forker.stop()


@lru_cache(maxsize=1)
def pool() -> DecodePool:
    """The decoding processes of this server process, by the operator's configuration."""
    return DecodePool(configuration().media)
