"""Downloaded tools: what has another digest than the reviewed file is never written, and stops the run."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "deploy_tools.py"
REVIEWED, OTHER = b"reviewed", b"something else"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with a folder of its own and no tools on the PATH."""
    spec = importlib.util.spec_from_file_location("deploy_tools", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TOOLS", tmp_path / "tools")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    return module


def test_the_reviewed_file_is_taken_and_kept(tools: ModuleType) -> None:
    tools.fetch("helm", lambda folder: REVIEWED, tools.digest(REVIEWED))
    target = tools.TOOLS / "helm"
    assert target.read_bytes() == REVIEWED
    assert target.stat().st_mode & 0o777 == 0o755
    tools.fetch("helm", lambda folder: pytest.fail("downloaded again"), tools.digest(REVIEWED))


def test_another_file_is_not_written(tools: ModuleType) -> None:
    with pytest.raises(tools.WrongDigest, match=tools.digest(OTHER)):
        tools.fetch("helm", lambda folder: OTHER, tools.digest(REVIEWED))
    assert not tools.TOOLS.exists()


@pytest.mark.parametrize("download", [REVIEWED, OTHER])
def test_a_file_that_was_changed_on_disk_is_not_used(tools: ModuleType, download: bytes) -> None:
    tools.TOOLS.mkdir()
    target = tools.TOOLS / "helm"
    target.write_bytes(OTHER)
    if download == REVIEWED:
        tools.fetch("helm", lambda folder: REVIEWED, tools.digest(REVIEWED))
        assert target.read_bytes() == REVIEWED
    else:
        with pytest.raises(tools.WrongDigest):
            tools.fetch("helm", lambda folder: OTHER, tools.digest(REVIEWED))
        assert not target.exists()


def test_the_run_stops_on_a_wrong_digest(
    tools: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tools, "promtool", lambda folder: OTHER)
    monkeypatch.setattr(tools, "helm", lambda folder: OTHER)
    assert tools.main() == 1
    assert tools.HELM_SHA256 in capsys.readouterr().err
    assert [path.name for path in tools.TOOLS.iterdir()] == ["promtool"]


def test_what_cannot_be_downloaded_is_said_and_left_to_the_tests(
    tools: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(folder: Path) -> bytes:
        raise OSError("no such package")

    monkeypatch.setattr(tools, "promtool", absent)
    monkeypatch.setattr(tools, "helm", absent)
    assert tools.main() == 0
    assert capsys.readouterr().err.count("no such package") == 2
    assert not tools.TOOLS.exists()
