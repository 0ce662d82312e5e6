"""Every body of vLLM that the project builds on has been read by a person in the installed version."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_prune.vllm_compat import bodies
from vllm_prune.vllm_compat.bodies import Location, body_of, digest
from vllm_prune.vllm_compat.version import SUPPORTED, minor_of, vllm_version

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MINOR = minor_of(vllm_version())


@pytest.fixture(scope="module")
def review() -> Any:
    """The script that lists and takes over."""
    spec = importlib.util.spec_from_file_location("review_bodies", ROOT / "scripts/review_bodies.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def expected() -> list[Location]:
    """By an interpreter of its own, as other tests of this process put functions of ours in the place of vLLM's."""
    command = [sys.executable, str(ROOT / "scripts/review_bodies.py"), "--locations"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [Location.parse(line) for line in done.stdout.splitlines() if line.startswith("vllm")]


def test_every_body_has_been_reviewed(review: Any, expected: list[Location]) -> None:
    unknown = bodies.unreviewed(expected, MINOR)
    listing = "\n".join(review.describe(location) for location in unknown)
    assert not unknown, (
        f"{len(unknown)} bodies of vLLM {vllm_version()} have not been read for this project:\n{listing}\n"
        "Read them, then run `python scripts/review_bodies.py --accept`; see CONTRIBUTING, a version of vLLM."
    )


def test_the_ledger_holds_every_supported_version_and_nothing_else(expected: list[Location]) -> None:
    entries = bodies.ledger()
    assert {minor for hashes in entries.values() for minor in hashes} == set(SUPPORTED)
    stale = set(bodies.reviewed_for(MINOR)) - set(expected)
    assert not stale, f"no longer built on, so `python scripts/review_bodies.py --accept` takes them out: {stale}"


@pytest.mark.parametrize(
    "location",
    [
        "vllm.multimodal.media.image:ImageMediaIO.__init__",
        "vllm.entrypoints.serve.utils.api_utils:with_cancellation",
        "vllm.multimodal.video_decoders.opencv:OpenCVVideoBackendMixin.get_video_metadata",
        "vllm.v1.core.sched.scheduler:Scheduler.schedule",
        "vllm.model_executor.models.qwen2_5_vl:Qwen2_5_VLForConditionalGeneration.get_mrope_input_positions",
        "vllm.multimodal.processing.processor:BaseMultiModalProcessor._cached_apply_hf_processor",
    ],
)
def test_what_is_consumed_wrapped_and_overridden_is_there(expected: list[Location], location: str) -> None:
    assert Location.parse(location) in expected


def test_a_changed_body_is_noticed_and_described(
    review: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = Location.parse("vllm.renderers.base:BaseRenderer._process_tokens")
    entries = json.loads(bodies.LEDGER.read_text())
    entries[str(changed)][MINOR] = ["0000000000000000"]
    monkeypatch.setattr(bodies, "LEDGER", tmp_path / "reviewed.json")
    bodies.LEDGER.write_text(json.dumps(entries))
    assert bodies.unreviewed([changed], MINOR) == [changed]
    text = review.describe(changed)
    assert "renderers/base.py:" in text
    assert "vllm_prune/vllm_compat/base_renderer.py:" in text
    monkeypatch.setattr(review, "LEDGER", bodies.LEDGER)
    monkeypatch.setattr(review, "expected", lambda: [changed])
    monkeypatch.setattr("sys.argv", ["review_bodies.py"])
    assert review.main() == 1
    assert str(changed) in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["review_bodies.py", "--accept"])
    assert review.main() == 0
    assert bodies.unreviewed([changed], MINOR) == []
    others = {minor for hashes in bodies.ledger().values() for minor in hashes}
    assert others == set(SUPPORTED), "accepting for one version leaves the others alone"


def test_a_body_that_is_gone_is_not_reviewed() -> None:
    gone = [Location("vllm.renderers.base", "BaseRenderer.no_such_method"), Location("vllm.nowhere.at.all", "f")]
    assert [body_of(location) for location in gone] == [None, None]
    assert bodies.unreviewed(gone, MINOR) == gone


def function(source: str) -> str:
    return digest(ast.parse(source).body[0])


def test_a_hash_is_about_what_code_does() -> None:
    """And stays the same over versions of Python: this one was taken on 3.11, and 3.13 has fields that are new."""
    source = 'def f(a, *, b=1):\n    """Text."""\n    return f"{a!r:>{b}}" if a else None\n'
    assert function(source) == "f09b65b3a1b5885e"
    assert function(source) == function(source.replace("Text", "Other").replace("return", "# Why.\n    return  "))
    for other in (source.replace("b=1", "b=2"), source.replace("!r", ""), source.replace("f(a", "f(c, a")):
        assert function(other) != function(source)
