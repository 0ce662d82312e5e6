"""How vLLM's `serve` is run in this process."""

from __future__ import annotations

import sys

import pytest
from vllm import envs

from vllm_prune.vllm_compat import plugin, serve_command


def test_endpoint_plugin_is_named_without_hiding_others() -> None:
    assert serve_command.allowed_plugins("mine").split(",") == ["mine", "vllm_prune"]
    assert serve_command.allowed_plugins("mine,vllm_prune") == "mine,vllm_prune"
    assert "vllm_prune" in serve_command.allowed_plugins(None).split(",")


def test_the_rust_front_end_is_refused_under_plain_vllm_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the process that would start it; an engine by itself is left alone."""
    patched: list[bool] = []
    monkeypatch.setattr(plugin, "patch_server", lambda: patched.append(True))
    monkeypatch.setitem(sys.modules, "vllm.entrypoints.cli.serve", object())
    plugin.register_models()
    assert patched == [True]
    # In the module, as vLLM remembers the environment once an engine has started.
    monkeypatch.setattr(envs, serve_command.RUST_FRONT_END, True, raising=False)
    with pytest.raises(serve_command.OtherFrontEnd, match=r"would ignore budgets\. Unset it, or .* VLLM_PLUGINS"):
        plugin.register_models()
    assert patched == [True]
