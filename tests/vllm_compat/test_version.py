"""What we rely on in vLLM is there, and an unknown vLLM is refused."""

from __future__ import annotations

import pytest

from vllm_prune.vllm_compat import serve_command, signatures
from vllm_prune.vllm_compat import version as version_module


def test_every_name_is_as_expected() -> None:
    assert signatures.signature_problems() == []


def test_a_missing_name_or_parameter_is_reported() -> None:
    gone = signatures.VllmSignature("vllm.multimodal.utils", "no_such_function", ())
    changed = signatures.VllmSignature("vllm.multimodal.utils", "copy_mm_embedding_modality", ("source",))
    assert "no_such_function" in (gone.problem() or "")
    assert "source" in (changed.problem() or "")


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0", "1.0.0", "0.32"])
def test_an_unknown_version_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(version_module, "vllm_version", lambda: version)
    with pytest.raises(version_module.UnsupportedVersion, match=r"supports vLLM 0\.32"):
        version_module.check_version()


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1", "0.32.0+cpu"])
def test_patch_releases_are_taken(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(version_module, "vllm_version", lambda: version)
    version_module.check_version()


def test_endpoint_plugin_is_named_without_hiding_others() -> None:
    assert serve_command.allowed_plugins("mine").split(",") == ["mine", "vllm_prune"]
    assert serve_command.allowed_plugins("mine,vllm_prune") == "mine,vllm_prune"
    assert "vllm_prune" in serve_command.allowed_plugins(None).split(",")
