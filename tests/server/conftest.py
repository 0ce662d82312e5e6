"""One real server per module of tests: our launcher, real HTTP on a real port, the bundled demo model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from benchmarks.servers import EAGER, UNBOUND, Server
from vllm_prune.config.media import Media
from vllm_prune_server.media.decode_pool import DecodePool

from . import guarded as guards

BUNDLED = Path(__file__).parents[2] / "benchmarks" / "demo_model" / "checkpoint"
# Another Qwen2.5-VL checkpoint can stand in for the bundled one.
DEMO = Path(os.environ.get("VLLM_PRUNE_TEST_MODEL", BUNDLED))

CONFIG = """
limits:
  min_keep: 0.005
presets:
  fast:
    visual: {keep: 0.25, strategy: uniform}
  full:
    visual: null
  my-budget:
    visual: {strategy: divprune, keep: 0.5}
    kv: null
media:
  private: [localhost]
  max_items: 8
"""


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`vllm-prune serve` with the demo model and two presets."""
    folder = tmp_path_factory.mktemp("server")
    config = folder / "prune.yaml"
    config.write_text(CONFIG)
    tools = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    arguments = ["--max-num-seqs", "16", "--block-size", "32", "--enable-scale-out", *tools]
    with Server(DEMO, "prune", arguments, config=config, log=folder / "server.log") as running:
        yield running


@pytest.fixture(scope="package")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[guards.Guarded]:
    """A server with tenants, two of them in the file and one in the environment, with caps, and without a scorer."""
    folder = tmp_path_factory.mktemp("guarded")
    model = folder / "model"
    model.mkdir()
    for path in DEMO.iterdir():
        if path.is_file():
            (model / path.name).symlink_to(path)
    config = folder / "prune.yaml"
    config.write_text(guards.CONFIG)
    # Every door that vLLM has is open, for `test_guard`.
    doors = ["--enable-scale-out", "--trust-request-mm-kwargs"]
    arguments = [*EAGER, "--max-num-seqs", "16", "--block-size", "32", "--enable-prompt-tokens-details", *doors]
    environment = {**UNBOUND, "VLLM_PRUNE_TENANTS": guards.TENANTS}
    log = folder / "server.log"
    with Server(model, "prune", arguments, config=config, log=log, environment=environment) as running:
        yield guards.Guarded(running)


@pytest.fixture(scope="package")
def pool() -> Iterator[DecodePool]:
    """Decoding processes of the tests' own process, with the default limits."""
    found = DecodePool(Media(decode_workers=2))
    found.start()
    yield found
    found.close()


@pytest.fixture(scope="package")
def client(server: Server) -> openai.OpenAI:
    """The OpenAI SDK, unmodified."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=120)


@pytest.fixture(scope="package")
def model(server: Server) -> str:
    """Name of the served model."""
    return server.model_name
