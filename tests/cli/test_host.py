"""What the launcher finds out about the machine, and what it does about it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vllm_prune.cli import host
from vllm_prune.cli.host import MALLOC_SWITCH, MALLOC_VARIABLES, preload_list, reuse_freed_memory


def test_preloading_never_mixes_two_openmp_runtimes() -> None:
    found = ["/usr/lib/libtcmalloc.so.4", "/venv/lib/libiomp5.so"]
    assert preload_list("", found) == found
    assert preload_list("/x/libfaketime.so", found) == [*found, "/x/libfaketime.so"]
    for runtime in ("/torch/lib/libgomp.so.1", "/opt/libomp.so", "/opt/libiomp5.so"):
        assert preload_list(f"{runtime}:/x/y.so", found) == [found[0], runtime, "/x/y.so"]
    mine = "/opt/libtcmalloc_minimal.so.4 /torch/lib/libgomp.so.1"
    assert preload_list(mine, found) == mine.split()
    assert preload_list("", []) == []


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A CPU machine with glibc on which nothing about allocation is set."""
    # Every name is set first, so that what the launcher sets is taken back after the test.
    for name in (MALLOC_SWITCH, *MALLOC_VARIABLES):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("LD_PRELOAD", "/venv/lib/libiomp5.so")
    monkeypatch.setattr(host, "has_cuda", lambda: False)
    monkeypatch.setattr(host.sys, "platform", "linux")
    monkeypatch.setitem(os.confstr_names, "CS_GNU_LIBC_VERSION", 2)
    return monkeypatch


def settings() -> dict[str, str]:
    return {name: os.environ[name] for name in MALLOC_VARIABLES if name in os.environ}


def test_freed_memory_is_kept_and_it_is_said(clean: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    reuse_freed_memory()
    assert settings().keys() == {"MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"}
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(("name", "value"), [
    (MALLOC_SWITCH, "0"), ("LD_PRELOAD", "/usr/lib/libtcmalloc_minimal.so.4"), ("LD_PRELOAD", "/opt/libjemalloc.so.2"),
    ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"), ("MALLOC_TRIM_THRESHOLD_", "131072"),
])  # fmt: skip
def test_what_the_user_has_chosen_stays(
    clean: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    clean.setenv(name, value)
    before = settings()
    reuse_freed_memory()
    assert settings() == before
    assert not capsys.readouterr().out


def test_it_is_for_glibc_on_a_cpu(clean: pytest.MonkeyPatch) -> None:
    with clean.context() as cuda:
        cuda.setattr(host, "has_cuda", lambda: True)
        reuse_freed_memory()
    with clean.context() as musl:
        musl.delitem(os.confstr_names, "CS_GNU_LIBC_VERSION")
        reuse_freed_memory()
    assert not settings()


FAULTS = """
import resource
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
size = 1 << 28
b"x" * size
before = faults()
for size in [1 << 26] * 4:
    b"x" * size
print(faults() - before)
"""
"""Page faults of four texts of 64 MiB, one after the other, where one of 256 MiB was before."""


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="another C library")
def test_a_process_that_is_started_then_takes_the_same_pages_again(clean: pytest.MonkeyPatch) -> None:
    def faults() -> int:
        return int(subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, check=True, text=True).stdout)

    pages = 4 * (1 << 26) // os.sysconf("SC_PAGE_SIZE")
    fresh = faults()
    reuse_freed_memory()
    # One of the four may lie across the end of what was kept.
    assert faults() < pages / 2 < 0.9 * pages < fresh
