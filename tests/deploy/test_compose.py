"""The compose files: valid, and their parts fit each other and the server."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from vllm_prune.config.load import load

from .command_lines import served
from .conftest import DEPLOY


def services(name: str = "compose.yaml") -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())["services"]
    return found


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml"])
def test_valid(name: str) -> None:
    text = (DEPLOY / name).read_text()
    assert set(PyCompose.from_yaml(text).service_names()) == set(services(name))
    with pytest.raises(ValueError, match="imagine"):
        PyCompose.from_yaml(text.replace("    image:", "    imagine:"))


def test_what_is_mounted_and_built_exists() -> None:
    volumes = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["volumes"]
    for service in services().values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in volumes or (DEPLOY / source).exists(), source
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert set(service.get("depends_on", ())) <= set(services())
    for name in ("compose.yaml", "compose.cuda.yaml"):
        assert (DEPLOY.parent / services(name)["server"]["build"]["dockerfile"]).is_file()


def test_the_configuration_is_one_that_the_server_takes() -> None:
    config = load(DEPLOY / "prune.yaml")
    assert config.logging.lines()
    for name in ("compose.yaml", "compose.cuda.yaml"):
        command = services(name)["server"]["command"]
        assert command[command.index("--config") + 1] in services()["server"]["volumes"][0]


def substituted(text: str, **variables: str) -> str:
    """Compose's `${NAME}` and `${NAME:-default}`."""
    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", lambda match: variables.get(match[1]) or match[2] or "", text)


@pytest.mark.parametrize(
    ("variables", "model"),
    [
        ({}, "Qwen/Qwen2.5-VL-7B-Instruct"),
        ({"MODEL": ""}, "Qwen/Qwen2.5-VL-7B-Instruct"),
        ({"MODEL": "Qwen/Qwen3-VL-8B-Instruct"}, "Qwen/Qwen3-VL-8B-Instruct"),
        ({"MODEL": "/models/mine"}, "/models/mine"),
    ],
    ids=str,
)
def test_a_hub_name_reaches_the_server_unchanged(variables: dict[str, str], model: str) -> None:
    """As the positional argument of `vllm-prune serve`, the image's entry point."""
    command = [substituted(word, **variables) for word in services("compose.cuda.yaml")["server"]["command"]]
    passed = served("Dockerfile.cuda", command)
    assert passed.model == model
    assert passed.config == "/etc/vllm-prune/prune.yaml"
    assert passed.rest == ["--host", "0.0.0.0"]


def test_the_cpu_service_serves_the_images_own_model() -> None:
    assert served("Dockerfile.cpu", services()["server"]["command"]).model == "/models/demo_model/checkpoint"


def test_prometheus_scrapes_the_server() -> None:
    scrapes = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    targets = [target for scrape in scrapes for static in scrape["static_configs"] for target in static["targets"]]
    assert targets == ["server:8000"]
    assert services()["server"]["ports"] == ["127.0.0.1:8000:8000"]


def test_the_drain_is_not_cut_short() -> None:
    assert int(services()["server"]["stop_grace_period"].removesuffix("s")) > 30


def test_no_secrets() -> None:
    for service in services().values():
        for name, value in service.get("environment", {}).items():
            if any(word in name for word in ("KEY", "PASSWORD", "TOKEN")):
                assert value.startswith("${"), name
