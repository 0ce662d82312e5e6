"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from typer.testing import CliRunner

from vllm_prune.catalogue import KV, VISUAL, entries, markdown
from vllm_prune.cli.host import CPU_CACHE, DEMO_CACHE, preload_list
from vllm_prune.cli.main import app
from vllm_prune.cli.serve import _defaults, has_flag, is_demo, value_of

COMMAND = str(Path(sys.executable).parent / "vllm-prune")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("VLLM_P")}
    return subprocess.run(
        [COMMAND, *arguments], capture_output=True, text=True, timeout=240, env={**clean, **environment}
    )


def test_strategies_in_three_forms() -> None:
    runner = CliRunner()
    assert "divprune" in runner.invoke(app, ["strategies"]).stdout
    assert runner.invoke(app, ["strategies", "--markdown"]).stdout.strip() == markdown(VISUAL) + "\n\n" + markdown(KV)
    listed = json.loads(runner.invoke(app, ["strategies", "--json"]).stdout)
    assert listed == entries()
    assert [entry["name"] for entry in listed] == [*VISUAL.names(), *KV.names()]


def test_doctor_passes_here() -> None:
    found = run("doctor")
    assert found.returncode == 0, found.stdout
    for word in (
        "vllm internals",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3VLForConditionalGeneration",
        "0.32",
        "Molmo2ForConditionalGeneration",
        "prefix attention",
        "experimental",
        "stts/scorer.safetensors",
    ):
        assert word in found.stdout
    assert "PROBLEM" not in found.stdout


def test_doctor_fails_when_the_plugin_is_left_out() -> None:
    found = run("doctor", VLLM_PLUGINS="something_else")
    assert found.returncode == 1
    assert "PROBLEM" in found.stdout
    assert "VLLM_PLUGINS" in found.stdout


def test_doctor_fails_on_a_broken_configuration(tmp_path: Path) -> None:
    config = tmp_path / "prune.yaml"
    config.write_text("limits:\n  most: 3\n")
    found = run("doctor", VLLM_PRUNE_CONFIG=str(config))
    assert found.returncode == 1
    assert "prune.yaml:2" in found.stdout.replace("\n", "").replace("│", "").replace(" ", "")


def test_doctor_fails_on_a_scorer_that_is_missing(tmp_path: Path) -> None:
    config = tmp_path / "prune.yaml"
    config.write_text(f"stts: {{scorer: {tmp_path}/none.safetensors}}\n")
    found = run("doctor", VLLM_PRUNE_CONFIG=str(config))
    assert found.returncode == 1
    assert "none.safetensorscannotberead" in found.stdout.replace("\n", "").replace("│", "").replace(" ", "")


def test_serve_says_what_to_change(tmp_path: Path) -> None:
    missing = run("serve", "./no/such/model")
    assert missing.returncode == 2
    assert "is not a directory" in missing.stderr
    config = tmp_path / "prune.yaml"
    config.write_text("presets:\n  a b: {visual: {keep: 0.5}}\n")
    broken = run("serve", "some/model", "--config", str(config))
    assert broken.returncode == 2
    assert "prune.yaml:2" in broken.stderr


def test_flags_are_found_in_either_spelling() -> None:
    arguments = ["--max_model_len", "512", "--port=9000", "--host", "0.0.0.0"]
    assert has_flag(arguments, "--max-model-len")
    assert has_flag(arguments, "--port")
    assert not has_flag(arguments, "--max-num-seqs")
    assert value_of(arguments, "--port", "8000") == "9000"
    assert value_of(arguments, "--host", "127.0.0.1") == "0.0.0.0"
    assert value_of(arguments, "--seed", "0") == "0"


def test_the_demo_is_recognised() -> None:
    assert is_demo("benchmarks/demo_model/checkpoint")
    assert not is_demo("Qwen/Qwen2.5-VL-7B-Instruct")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in bfloat16")
class TestArithmetic:
    DEMO = "benchmarks/demo_model/checkpoint"

    @pytest.mark.parametrize(
        ("features", "dtype"),
        [
            ("flags\t\t: fpu sse2 avx2", "float32"),
            ("flags\t\t: fpu avx512f avx512_bf16", ""),
            ("Features\t: fp asimd bf16", ""),
            ("Features\t: fp asimd", "float32"),
            ("no list of features", ""),
        ],
    )
    def test_the_demo_computes_in_what_the_processor_has(
        self, features: str, dtype: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        listing = tmp_path / "cpuinfo"
        listing.write_text(f"model name\t: of bf16 fame\n{features}\n")
        monkeypatch.setattr("vllm_prune.cli.host.CPU_INFO", listing)
        assert value_of(_defaults(self.DEMO, []), "--dtype", "") == dtype
        assert not has_flag(_defaults(self.DEMO, ["--dtype", "bfloat16"]), "--dtype")
        assert not has_flag(_defaults("some/model", []), "--dtype")


class TestMemory:
    DEMO = "benchmarks/demo_model/checkpoint"

    @pytest.fixture(autouse=True)
    def half_free(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(CPU_CACHE, raising=False)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=24 << 30, available=12 << 30))

    def test_the_demo_starts_beside_anything(self) -> None:
        assert value_of(_defaults(self.DEMO, []), "--kv-cache-memory-bytes", "") == DEMO_CACHE

    @pytest.mark.skipif(torch.cuda.is_available(), reason="vLLM's own share of a GPU stays")
    def test_others_reserve_what_is_free(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert value_of(_defaults("some/model", []), "--gpu-memory-utilization", "") == "0.45"
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=24 << 30, available=23 << 30))
        assert not has_flag(_defaults("some/model", []), "--gpu-memory-utilization")

    @pytest.mark.parametrize("model", [DEMO, "some/model"])
    def test_what_the_user_says_stays(self, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def reserved(arguments: list[str]) -> list[str]:
            return [a for a in _defaults(model, arguments) if "memory" in a]

        assert not reserved(["--gpu_memory_utilization=0.3"])
        assert not reserved(["--kv-cache-memory-bytes", "1G"])
        monkeypatch.setenv(CPU_CACHE, "2")
        assert not reserved([])


def test_preloading_never_mixes_two_openmp_runtimes() -> None:
    found = ["/usr/lib/libtcmalloc.so.4", "/venv/lib/libiomp5.so"]
    assert preload_list("", found) == found
    assert preload_list("/x/libfaketime.so", found) == [*found, "/x/libfaketime.so"]
    for runtime in ("/torch/lib/libgomp.so.1", "/opt/libomp.so", "/opt/libiomp5.so"):
        assert preload_list(f"{runtime}:/x/y.so", found) == [found[0], runtime, "/x/y.so"]
    mine = "/opt/libtcmalloc_minimal.so.4 /torch/lib/libgomp.so.1"
    assert preload_list(mine, found) == mine.split()
    assert preload_list("", []) == []
