from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_prune.config.load import ConfigError, load
from vllm_prune.config.tenants import ENV, hash_key

A, B = hash_key("a" * 20), hash_key("b" * 20)
PRESET = "presets: {fast: {kv: {keep: 0.2}, visual: null}}\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "prune.yaml"
    path.write_text(text)
    return path


def test_limits_and_defaults_are_laid_over_the_servers(tmp_path: Path) -> None:
    text = f"""
defaults: {{visual: {{keep: 0.5}}}}
limits: {{min_keep: 0.1, max_tokens: 100, kv: {{min_keep: 0.3, max_tokens: 9}}}}
{PRESET}
tenants:
  "{A}": {{default_preset: fast, limits: {{min_keep: 0.2, kv: {{min_keep: 0.4}}}}}}
  "{B}": {{}}
"""
    config = load(written(tmp_path, text))
    own, other = (config.for_tenant(config.tenants[key]) for key in (A, B))
    assert (own.limits.min_keep, own.limits.max_tokens) == (0.2, 100)
    assert (own.limits.kv.min_keep, own.limits.kv.max_tokens) == (0.4, 9)
    assert own.defaults.visual is None
    assert own.defaults.kv is not None
    assert (other.limits, other.defaults) == (config.limits, config.defaults)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("tenants: {plain-text-key: {}}", "tenants"),
        (f'tenants: {{"{A[:-1]}": {{}}}}', "tenants"),
        (f'tenants: {{"{A}": {{default_preset: nobody}}}}', "unknown default_preset 'nobody'; known: fast"),
        (f'tenants: {{"{A}": {{limits: {{min_keep: 0.9}}}}}}\nlimits: {{max_keep: 0.5}}', "min_keep is above max_keep"),
        (f'tenants: {{"{A}": {{name: x}}, "{B}": {{name: x, cache_salt: y}}}}', "entries of the tenant 'x' differ"),
        (f'tenants: {{"{A}": {{rate: {{requests_per_second: 0}}}}}}', "requests_per_second"),
        (f'tenants: {{"{A}": {{rte: 1}}}}', "rte"),
        ("admission: {max_inflight_requests: 0}", "max_inflight_requests"),
        ("admission: {max_body_seconds: .inf}", "max_body_seconds"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word.replace("(", r"\(")) as caught:
        load(written(tmp_path, PRESET + text))
    assert "prune.yaml:" in str(caught.value)
    # It may be a key in plain text, and messages end in logs.
    assert "plain-text-key" not in str(caught.value)


def test_the_environment_adds_tenants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, f'{PRESET}tenants: {{"{A}": {{}}}}')
    monkeypatch.setenv(ENV, json.dumps({B: {"default_preset": "fast"}}))
    assert set(load(path).tenants) == {A, B}
    monkeypatch.setenv(ENV, f'"{A}": {{}}')
    with pytest.raises(ConfigError, match="repeats keys"):
        load(path)
    monkeypatch.delenv("VLLM_PRUNE_CONFIG", raising=False)
    assert set(load().tenants) == {A}
    for wrong in ("[1]", "a: [", "just text"):
        monkeypatch.setenv(ENV, wrong)
        with pytest.raises(ConfigError, match=ENV):
            load()
    monkeypatch.setenv(ENV, f'"{A}": {{default_preset: nobody}}')
    with pytest.raises(ConfigError, match="nobody"):
        load()
