"""How vLLM's `serve` is run in this process."""

from __future__ import annotations

from vllm_prune.vllm_compat import serve_command


def test_endpoint_plugin_is_named_without_hiding_others() -> None:
    assert serve_command.allowed_plugins("mine").split(",") == ["mine", "vllm_prune"]
    assert serve_command.allowed_plugins("mine,vllm_prune") == "mine,vllm_prune"
    assert "vllm_prune" in serve_command.allowed_plugins(None).split(",")
