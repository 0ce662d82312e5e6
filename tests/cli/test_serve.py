"""The launcher: what it refuses, what it adds, and that everything else is vLLM's."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from vllm_prune.cli import serve
from vllm_prune.cli.host import CPU_CACHE, DEMO_CACHE
from vllm_prune.cli.serve import V2_RUNNER, LaunchError, _defaults, has_flag, is_demo, is_path, launch

from .command import run

HUB_NAME = "Qwen/Qwen2.5-VL-7B-Instruct"


def defaults(model: str) -> dict[str, str]:
    """Flags that the launcher adds, with their values."""
    added = _defaults(model, [])
    return dict(zip(added[::2], added[1::2], strict=True))


def test_only_what_is_written_as_a_path_is_one() -> None:
    for path in ("./model", "../model", "/models/one", "~/models/one", ".", ".."):
        assert is_path(path), path
    for name in (HUB_NAME, "gpt2", ".hidden", "org/.model", "a/b/c"):
        assert not is_path(name), name


@pytest.mark.engine
def test_a_launch_that_is_refused_ends_with_its_message() -> None:
    missing = run("serve", "./no/such/model")
    assert missing.returncode == 2
    assert "vllm-prune: ./no/such/model is not a directory" in missing.stderr


@pytest.mark.parametrize("path", ["./no/such/model", "../no-such-model", "/no/such/model", "~/no/such/model"])
def test_a_folder_that_is_missing_is_named(path: str) -> None:
    with pytest.raises(LaunchError, match=f"^{os.path.expanduser(path)} is not a directory"):
        launch(path, [], None)


@pytest.mark.engine
def test_a_hub_name_reaches_vllm() -> None:
    """Offline the hub's own loader has the last word: the name went through the launcher and through vLLM."""
    answer = run("serve", HUB_NAME, "--port", "1", HF_HUB_OFFLINE="1", HF_HOME="/nonexistent")
    assert answer.returncode != 0
    assert "is not a directory" not in answer.stderr
    assert "LocalEntryNotFoundError" in answer.stderr + answer.stdout


@pytest.mark.engine
def test_serve_says_what_to_change(tmp_path: Path) -> None:
    config = tmp_path / "prune.yaml"
    config.write_text("presets:\n  a b: {visual: {keep: 0.5}}\n")
    broken = run("serve", "some/model", "--config", str(config))
    assert broken.returncode == 2
    assert "prune.yaml:2" in broken.stderr


@pytest.mark.engine
def test_front_ends_that_run_none_of_our_code_are_refused() -> None:
    rust = run("serve", HUB_NAME, VLLM_USE_RUST_FRONTEND="1")
    assert rust.returncode == 2
    assert "VLLM_USE_RUST_FRONTEND" in rust.stderr
    for flag in ("--grpc", "--grpc-port=1"):
        with pytest.raises(LaunchError, match="gRPC server would ignore budgets"):
            launch(HUB_NAME, [flag], None)


@pytest.mark.parametrize(("chosen", "cuda", "runner"), [
    (None, True, "0"), (None, False, None), ("1", True, "1"), ("0", True, "0"), ("1", False, "1"),
])  # fmt: skip
def test_the_runner_is_v1_on_cuda_unless_the_user_has_chosen(
    chosen: str | None,
    cuda: bool,
    runner: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(serve, "has_cuda", lambda: cuda)
    monkeypatch.setattr(os, "environ", {} if chosen is None else {V2_RUNNER: chosen})
    serve.choose_runner([])
    assert os.environ.get(V2_RUNNER) == runner
    assert (f"{V2_RUNNER}=0" in capsys.readouterr().out) == (runner != chosen)


@pytest.mark.parametrize("arguments", [["--worker-cls", "other.Worker"], ["--scheduler_cls=other.Scheduler"]])
def test_the_runner_is_vllms_choice_where_nothing_is_evicted(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "has_cuda", lambda: True)
    monkeypatch.setattr(os, "environ", {})
    serve.choose_runner(arguments)
    assert V2_RUNNER not in os.environ


def test_flags_are_seen_in_either_spelling() -> None:
    arguments = ["--max_model_len", "512", "--port=9000", "--host", "0.0.0.0"]
    assert has_flag(arguments, "--max-model-len")
    assert has_flag(arguments, "--port")
    assert not has_flag(arguments, "--max-num-seqs")


def test_the_demo_is_recognised() -> None:
    assert is_demo("benchmarks/demo_model/checkpoint")
    assert not is_demo(HUB_NAME)


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
        assert defaults(self.DEMO).get("--dtype", "") == dtype
        assert not has_flag(_defaults(self.DEMO, ["--dtype", "bfloat16"]), "--dtype")
        assert not has_flag(_defaults("some/model", []), "--dtype")


class TestMemory:
    DEMO = "benchmarks/demo_model/checkpoint"

    @pytest.fixture(autouse=True)
    def half_free(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(CPU_CACHE, raising=False)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=24 << 30, available=12 << 30))

    def test_the_demo_starts_beside_anything(self) -> None:
        assert defaults(self.DEMO)["--kv-cache-memory-bytes"] == DEMO_CACHE

    @pytest.mark.skipif(torch.cuda.is_available(), reason="vLLM's own share of a GPU stays")
    def test_others_reserve_what_is_free(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert defaults("some/model")["--gpu-memory-utilization"] == "0.45"
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
