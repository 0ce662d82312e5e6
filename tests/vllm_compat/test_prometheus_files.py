"""Files of metrics on a full disk: reserved ones take what comes, others count in memory, nothing dies."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from vllm_prune.vllm_compat import prometheus_files

Reserving: Any = prometheus_files._reserving(MmapedDict)


def key(number: int) -> str:
    return str(mmap_key("family", f"name_{number}", ["label"], [f"value {number}"], "help"))


def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the file system has no room."""

    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)


def counted(path: Path) -> dict[str, float]:
    return {name: value for name, value, _, _ in MmapedDict.read_all_values_from_file(str(path))}


def test_pages_exist_before_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    one = Reserving(str(path))
    assert os.stat(path).st_blocks * 512 >= prometheus_files.RESERVED
    one.write_value(key(0), 3.0, 0.0)
    assert counted(path) == {key(0): 3.0}
    assert Reserving(str(path)).read_value(key(0))[0] == 3.0


def test_growth_is_reserved_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus_files, "RESERVED", 4096)
    path = tmp_path / "counter_1.db"
    one = Reserving(str(path))
    for number in range(200):
        one.write_value(key(number), float(number), 0.0)
    assert counted(path) == {key(number): float(number) for number in range(200)}
    assert os.stat(path).st_blocks * 512 >= os.stat(path).st_size > 4096


def test_without_room_to_grow_it_counts_on_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus_files, "RESERVED", 4096)
    path = tmp_path / "counter_1.db"
    one = Reserving(str(path))
    one.write_value(key(0), 1.0, 0.0)
    full(monkeypatch)
    for number in range(1, 300):
        one.write_value(key(number), float(number), 0.0)
    assert [one.read_value(key(number))[0] for number in range(300)] == [1.0, *map(float, range(1, 300))]
    exported = counted(path)
    assert key(0) in exported
    assert key(299) not in exported
    one.close()


def test_without_room_for_a_file_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch)
    one = Reserving(str(tmp_path / "counter_1.db"))
    one.write_value(key(0), 2.0, 0.0)
    assert one.read_value(key(0))[0] == 2.0
    assert list(tmp_path.iterdir()) == []


def test_file_systems_that_cannot_reserve_are_used_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    path = tmp_path / "counter_1.db"
    Reserving(str(path)).write_value(key(0), 2.0, 0.0)
    assert counted(path) == {key(0): 2.0}


@pytest.mark.slow
def test_the_library_uses_it_in_a_process_of_its_own(tmp_path: Path) -> None:
    code = """
from vllm_prune.vllm_compat.prometheus_files import reserve_metric_files
assert reserve_metric_files() and reserve_metric_files()
from prometheus_client import Counter
Counter("seen", "Help.", ["label"]).labels("a").inc(5)
"""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    (path,) = tmp_path.iterdir()
    assert os.stat(path).st_blocks * 512 >= prometheus_files.RESERVED
    assert 5.0 in counted(path).values()


ON_A_FULL_FOLDER = """
import contextlib, os
if {adapted}:
    from vllm_prune.vllm_compat.prometheus_files import reserve_metric_files
    assert reserve_metric_files()
from prometheus_client import Counter
counter = Counter("seen", "Help.", ["label"])
counter.labels("first").inc()
filler = os.path.join(os.environ["PROMETHEUS_MULTIPROC_DIR"], "filler")
with open(filler, "wb", 0) as file, contextlib.suppress(OSError):
    while True:
        file.write(bytes(4096))
for number in range(2000):
    counter.labels(f"label {{number}}").inc()
"""


@pytest.mark.parametrize(
    ("adapted", "status"), [(False, -signal.SIGBUS), pytest.param(True, 0, marks=pytest.mark.slow)]
)
def test_memory_backed_storage_alone_would_not_do(tmp_path: Path, adapted: bool, status: int) -> None:
    """Once the library survives by itself here, the adapter can go."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        code = ON_A_FULL_FOLDER.format(adapted=adapted)
        assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == status
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_an_unknown_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        def __init__(self, path: str) -> None: ...

    monkeypatch.setattr(values, "MmapedDict", Other)
    assert not prometheus_files.reserve_metric_files()
    assert values.MmapedDict is Other  # type: ignore[comparison-overlap]
