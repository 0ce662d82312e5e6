from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from vllm_prune.config.admission import Admission
from vllm_prune.config.load import ENV, ConfigError, PruneConfig, load
from vllm_prune.config.media import Media


def written(folder: Path, text: str) -> Path:
    path = folder / "prune.yaml"
    path.write_text(text)
    return path


def test_no_file_means_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV, raising=False)
    assert load() == PruneConfig()


def test_a_whole_file(tmp_path: Path) -> None:
    text = """
defaults:
  visual: {keep: 0.5, strategy: uniform}
limits:
  max_keep: 0.9
  max_tokens: 4096
  strategies: [uniform, random]
  on_limit: reject
presets:
  fast: {visual: {keep: 0.25, strategy: uniform}}
"""
    config = load(written(tmp_path, text))
    assert config.limits.strategies == ("uniform", "random")
    assert config.presets["fast"].visual is not None
    assert config.presets["fast"].visual.keep == 0.25


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("defaults:\n  visuel: {}\n", 2, "visuel"),
        ("limits:\n  max_keep: 0.5\n  on_limit: maybe\n", 3, "on_limit"),
        ("presets:\n  fast:\n    visual:\n      keep: 7\n", 4, "keep"),
        ("presets:\n  fast:\n    visual:\n      keep: '0.5'\n", 4, "keep"),
        ("unknown: 1\n", 1, "unknown"),
        ("limits:\n  strategies: [magic]\n", 1, "magic"),
        ("presets:\n  fast: {visual: {keep: 0.5, strategy: magic}}\n", 1, "magic"),
        ("presets:\n  fast: {kv: {window: 4}}\n", 1, "keep"),
        ("limits:\n  kv:\n    strategies: [magic]\n", 2, "magic"),
        ("media:\n  hosts:\n  - a.example\n  - 7\n", 4, "hosts"),
        ("presets: {fast: {visual: {keep: 0.5, strategy: ''}}}\n", 1, "unknown strategy ''"),
        ("presets: {'': {}}\n", 1, "presets"),
        ("presets: {'': 7}\n", 1, "presets"),
        ("stts: {scorer: ''}\n", 1, "scorer"),
        ("vision_selector: {weights: ''}\n", 1, "weights"),
        ("weights: {uniform: a}\n", 1, "uniform"),
        ("weights:\n  qtsplus: ''\n", 2, "qtsplus"),
        ("feature_cache: {max_bytes: -1}\n", 1, "max_bytes"),
        ("feature_cache: {max_bytes: 1.5}\n", 1, "max_bytes"),
        ("- a list\n", 1, "file"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, text: str, line: int, word: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert f"{path}:{line}:" in str(caught.value)
    assert word in str(caught.value)


def test_unreadable_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match=r"prune\.yaml"):
        load(written(tmp_path, "a: [1\n"))


def test_only_caps_of_size_weigh() -> None:
    assert not Admission().weighs
    assert not Admission(max_inflight_requests=1).weighs
    assert Admission(max_inflight_visual_tokens=1).weighs
    assert Admission(max_inflight_kv_rows=1).weighs


def test_media_hosts_and_networks() -> None:
    media = Media(hosts=("CDN.example.com", "*.Example.org"), private=("10.0.3.0/24", "Depot"))
    assert media.hosts == ("cdn.example.com", "*.example.org")
    assert media.private == ("10.0.3.0/24", "depot")
    assert media.private_networks == (ip_network("10.0.3.0/24"),)
    assert Media(decode_workers=3).workers == 3
    assert 1 <= Media().workers <= 4
    for wrong in ({"hosts": ("http://a",)}, {"private": ("10.0.3.0/33",)}):
        with pytest.raises(ValueError, match=r"give names|neither a network"):
            Media.model_validate(wrong)
