"""Front ends without an engine, one per module and configuration."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from vllm_prune.config import load as configuration_module

CONFIG = """
limits: {min_keep: 0.05}
presets:
  fast: {visual: {keep: 0.25, strategy: uniform}}
  full: {visual: null, kv: null}
"""
ENVIRONMENT = {"VLLM_PLUGINS": "vllm_prune", "VLLM_MEDIA_CONNECTOR": "vllm_prune", "HF_HUB_OFFLINE": "1"}


@contextlib.contextmanager
def configured(folder: Path, text: str) -> Iterator[None]:
    """The process as `vllm-prune serve --config` would have prepared it; everything is put back afterwards."""
    config = folder / "prune.yaml"
    config.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "VLLM_PRUNE_CONFIG": str(config)}.items():
            patch.setenv(name, value)
        forget_configuration()
        yield
    forget_configuration()


def forget_configuration() -> None:
    """Read the configuration again, as a new process would."""
    from vllm_prune import policy

    configuration_module.configuration.cache_clear()
    for value in vars(policy).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    """`client, engine` of a front end; a module may set `CONFIG`, `ARGUMENTS` and `SECONDS` per token."""
    from .engine import arguments, front_end

    module = request.module
    folder = tmp_path_factory.mktemp("front")
    with configured(folder, getattr(module, "CONFIG", CONFIG)):
        args = arguments(*getattr(module, "ARGUMENTS", ()))
        async with front_end(args, getattr(module, "SECONDS", 0.0)) as pair:
            yield pair


@pytest.fixture(scope="module")
def client(front: Any) -> httpx.AsyncClient:
    """A client of the front end."""
    return front[0]


@pytest.fixture(scope="module")
def engine(front: Any) -> Any:
    """The engine behind the front end."""
    return front[1]


@pytest.fixture(autouse=True, scope="package")
def environment() -> Iterator[None]:
    """What vLLM's configuration leaves in the environment stays in these tests."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
