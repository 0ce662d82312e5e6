"""Settings shared by all tests; imports nothing heavy."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from . import engine_guard, runner_v2
from .engine_guard import pytest_runtest_protocol  # noqa: F401 - a hook

# The first call of a torch kernel takes long on a busy machine, which says nothing about the code under test.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("default")
engine_guard.install()

SPREAD = ("engine", "kv", "visual")
"""Folders with a rule of their own, or whose tests share nothing that is slow to start."""
ALONE = ("test_lifecycle.py",)
"""Files whose tests start a server each, which either process may take."""
EARLY = (*ALONE, "test_disk_full.py", "test_observability.py", "test_runner_v2.py", "test_gpu_dry_run.py")
"""Files that take half a minute or more, and would leave the other process idle at the end."""
SHARED = ("guarded", "server")
"""Fixtures that start a server for several files."""
DECODERS = "pool"
"""Fixture whose decoding processes import as much as a server does."""
ENGINES = "engine"
"""Folder whose tests start engines."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the choice of the model runner."""
    parser.addoption(
        "--runner",
        choices=("v1", "v2", "v2-mechanisms"),
        default="v1",
        help="vLLM's model runner in all engines that tests start; v2-mechanisms: those of tests/runner_v2.py only",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Prepare this process for Runner V2 before anything imports vLLM."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts what it runs in the background so, and all servers of the tests would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "runner(name, reason): has a meaning on this model runner of vLLM only")
    if config.getoption("--runner") != "v1":
        runner_v2.install()


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name bytes by their number: files hold the second in which they are made, and processes compare names."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts an engine, give tests that share a server, or a file, to one process, skip `gpu` tests."""
    for item in items:
        place = item.path.relative_to(Path(__file__).parent)
        if place.parts[0] == ENGINES or set(SHARED) & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.engine)
        if DECODERS in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
        if place.parts[0] not in SPREAD and place.name not in ALONE:
            used = getattr(item, "fixturenames", ())
            group = next((name for name in SHARED if name in used), str(place))
            item.add_marker(pytest.mark.xdist_group(group))
        needs = item.get_closest_marker("runner")
        if needs is not None and needs.args[0] != ("v2" if runner_v2.is_on() else "v1"):
            item.add_marker(pytest.mark.skip(reason=needs.args[1]))
    _select_mechanisms(items)
    items.sort(key=_turn)
    _skip_gpu(items)


def _select_mechanisms(items: list[pytest.Item]) -> None:
    """With `--runner v2-mechanisms`, leave only the tests that stand for a mechanism; each must be there."""
    if not items or items[0].config.getoption("--runner") != "v2-mechanisms":
        return
    names = {item.nodeid.rpartition("tests/engine/")[2]: item for item in items}
    if missing := set(runner_v2.MECHANISMS.values()) - set(names):
        raise pytest.UsageError(f"tests/runner_v2.py names tests that are not collected: {sorted(missing)}")
    selected = [names[name] for name in runner_v2.MECHANISMS.values()]
    items[0].config.hook.pytest_deselected(items=[item for item in items if item not in selected])
    items[:] = [item for item in items if item in selected]


def _turn(item: pytest.Item) -> int:
    """Longest first: a shared server's tests run one after the other, and whoever comes last runs alone."""
    used = getattr(item, "fixturenames", ())
    if "server" in used or "guarded" in used:
        return 0 if "server" in used else 1
    return 2 if item.path.name in EARLY else 3


def _skip_gpu(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
