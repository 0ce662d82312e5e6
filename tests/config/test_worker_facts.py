"""What travels to the workers in vLLM's `additional_config`, and how the launcher puts it there."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from vllm_prune.config.kv import Kv
from vllm_prune.config.load import PruneConfig
from vllm_prune.config.worker_facts import FactsError, WorkerFacts

FACTS = WorkerFacts(True, "/scorer", None, 128, 16)
WIRE = {"launched": True, "scorer": "/scorer", "max_window": 128, "observed_requests": 16}


@lru_cache
def vllm_parser() -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())


def parsed(arguments: list[str]) -> dict[str, Any]:
    """`additional_config` as vLLM's own parser reads it."""
    return dict(vllm_parser().parse_args(arguments).additional_config)


def test_only_what_differs_from_the_defaults_travels() -> None:
    assert WorkerFacts().wire() == {}
    assert FACTS.wire() == WIRE
    # The key of vLLM's compile cache is the same at every start without trained weights.
    assert WorkerFacts.configured(PruneConfig()).wire() == {"launched": True}


def test_facts_are_read_back_from_vllms_configuration() -> None:
    assert WorkerFacts.of(SimpleNamespace(additional_config={"vllm_prune": WIRE, "other": 1})) == FACTS
    assert WorkerFacts.of(SimpleNamespace(additional_config={"vllm_prune": {**WIRE, "newer": 1}})) == FACTS
    for plain in (
        SimpleNamespace(),
        SimpleNamespace(additional_config={}),
        SimpleNamespace(additional_config=object()),
    ):
        assert WorkerFacts.of(plain) == WorkerFacts()


def test_groups_of_layers_come_through_json() -> None:
    facts = WorkerFacts.configured(PruneConfig.model_validate({"kv": {"layer_groups": (14, 21)}}))
    assert facts.layer_groups == (14, 21)
    assert WorkerFacts.of(SimpleNamespace(additional_config=parsed(facts.merged_into([])))) == facts
    for wrong in ((21, 14), (14, 14), (0, 3)):
        with pytest.raises(ValidationError):
            Kv(layer_groups=wrong)


def test_paths_are_those_of_the_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    trained = {"weights": {"qtsplus": "c"}, "feature_cache": {"max_bytes": 9}}
    config = PruneConfig.model_validate({"stts": {"scorer": "a"}, "vision_selector": {"weights": "/b"}, **trained})
    config = config.model_copy(update={"kv": Kv(observed_requests=9)})
    assert WorkerFacts.configured(config).observed_requests == 9
    config = config.model_copy(update={"kv": Kv(plain_graphs=False)})
    assert WorkerFacts.configured(config).wire()["plain_graphs"] is False
    config = config.model_copy(update={"kv": Kv()})
    assert WorkerFacts.configured(config) == WorkerFacts(
        True, f"{tmp_path}/a", "/b", weights={"qtsplus": f"{tmp_path}/c"}, feature_cache_bytes=9
    )


@pytest.mark.parametrize(
    ("arguments", "others"),
    [
        ([], {}),
        (["--seed", "3"], {}),
        (["--additional-config", '{"a": {"b": 1}}'], {"a": {"b": 1}}),
        (['--additional-config={"a": "x=y.z"}', "--seed", "3"], {"a": "x=y.z"}),
        (["--additional_config", '{"a": 1}', '--additional-config={"b": 2}'], {"b": 2}),
        (["--additional-config.a.b", "1"], {"a": {"b": 1}}),
        (["--additional_config.a_b=1", "--additional-config.c", "x"], {"a_b": 1, "c": "x"}),
    ],
)
def test_the_users_own_configuration_stays(arguments: list[str], others: dict[str, Any]) -> None:
    assert parsed(FACTS.merged_into(arguments)) == {**others, "vllm_prune": WIRE}
    assert not others or parsed(arguments) == others


@pytest.mark.parametrize(
    "arguments",
    [
        ["--additional-config"],
        ["--additional-config", "[1]"],
        ["--additional-config", "{"],
        ["--additional-config", json.dumps({"vllm_prune": {}})],
        ["--additional_config.vllm_prune.launched", "true"],
        ["--additional-config.vllm_prune={}"],
        ["--additional-config.vllm_prune", "{}"],
    ],
)
def test_what_cannot_be_merged_is_refused(arguments: list[str]) -> None:
    with pytest.raises(FactsError, match="additional-config"):
        FACTS.merged_into(arguments)
