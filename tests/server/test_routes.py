"""Catalogue, presets, health and metrics."""

from __future__ import annotations

from typing import Any

import httpx
import openai

from vllm_prune.catalogue import KV, VISUAL

from .media_files import image_part, mp4, png, user, video_part


def get(server: Any, path: str) -> httpx.Response:
    return httpx.get(f"{server.url}{path}", timeout=30)


def test_catalogue_and_presets(server: Any) -> None:
    catalogue = get(server, "/v1/pruning/strategies").json()
    found = catalogue["data"]
    assert [entry["name"] for entry in found] == [*VISUAL.names(), *KV.names()]
    for entry in found:
        about = {"name", "part", "modality", "needs", "summary", "paper", "options", "families"}
        assert set(entry) == {*about, "families_with_positions"}
        merges = "positions" in entry["options"]["properties"]
        assert ("Qwen2_5_VLForConditionalGeneration" in entry["families_with_positions"]) == merges
        assert "Molmo2ForConditionalGeneration" not in entry["families_with_positions"]
        assert entry["options"]["type"] == "object"
        assert ("Qwen2_5_VLForConditionalGeneration" in entry["families"]) == ("unpooled" not in entry["needs"])
        inside = entry["part"] == "visual" and VISUAL.create(entry["name"]).wanted() - {"selector", "weights"}
        assert ("InternVLForConditionalGeneration" in entry["families"]) == (not inside)
    assert set(catalogue["defaults"]) == {"image", "video", "kv"}
    assert catalogue["defaults"]["video"]["options"]["where"] in ("embed", "tower")
    presets = {entry["name"]: entry["pruning"] for entry in get(server, "/v1/pruning/presets").json()["data"]}
    assert presets == {
        "fast": {"visual": {"keep": 0.25, "strategy": "uniform"}},
        "full": {"visual": None},
        "my-budget": {"visual": {"keep": 0.5, "strategy": "divprune"}, "kv": None},
    }


def test_health(server: Any) -> None:
    for path in ("/health", "/health/live", "/health/ready", "/health/startup"):
        assert get(server, path).status_code == 200
    assert get(server, "/health/startup").json() == {
        "started": True,
        "pruning": True,
        "findings": [],
        "kv": True,
        "kv_findings": [],
        "media_findings": [],
    }


def test_our_routes_are_in_the_openapi_document(server: Any) -> None:
    paths = get(server, "/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/responses", "/v1/pruning/strategies", "/health/ready"} <= set(paths)


def test_metrics_count_what_usage_reports(server: Any, client: openai.OpenAI, model: str) -> None:
    given, kept = "vllm_prune_visual_tokens_input_total", "vllm_prune_visual_tokens_kept_total"
    before = server.metric(given), server.metric(kept), server.metric("vllm:prompt_tokens_total")
    answer = client.chat.completions.create(
        model=model,
        messages=user([image_part(png(140, 168, 77)), video_part(mp4(6, 84, 112, 78))]),
        max_tokens=2,
        extra_body={"pruning": {"visual": {"keep": 0.4, "strategy": "random"}}},
    )
    visual = answer.usage.pruning["visual"]
    after = server.metric(given), server.metric(kept), server.metric("vllm:prompt_tokens_total")
    assert after[0] - before[0] == visual["input_tokens"]
    assert after[1] - before[1] == visual["kept_tokens"]
    assert after[2] - before[2] == answer.usage.prompt_tokens


def test_metric_names_and_labels(server: Any, model: str) -> None:
    lines = [line for line in get(server, "/metrics").text.splitlines() if line.startswith("vllm_prune_")]
    for name in ("request_visual_tokens_bucket", "keep_ratio_bucket", "score_seconds_bucket", "build_info"):
        assert any(line.startswith(f"vllm_prune_{name}{{") for line in lines), name
    assert all(f'model_name="{model}"' in line for line in lines)
    assert server.metric("vllm_prune_inflight_requests") == 0
    assert server.metric("vllm_prune_inflight_visual_tokens") == 0
    assert any(line.startswith("vllm:") for line in get(server, "/metrics").text.splitlines())
