"""Write the Grafana dashboards beside this file: `python deploy/grafana/build.py`. A test compares them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
HERE = 'model_name=~"$model"'


@dataclass(frozen=True)
class Panel:
    """One time series panel.

    Attributes:
        title: what is shown.
        unit: Grafana's name of it.
        queries: pairs of PromQL and legend.
        help: how to read it.
        stacked: series add up to something.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    help: str
    stacked: bool = False


def rate(metric: str, by: str, more: str = "") -> str:
    """Sum of a counter's rates."""
    return f"sum by ({by}) (rate({metric}{{{HERE}{more}}}[$__rate_interval]))"


def quantiles(metric: str, more: str = "") -> tuple[tuple[str, str], ...]:
    """Median and upper percentiles of a histogram."""
    buckets = rate(f"{metric}_bucket", "le", more)
    return tuple((f"histogram_quantile({q / 100:g}, {buckets})", f"p{q}") for q in (50, 95, 99))


def mean(metric: str, by: str) -> str:
    """Mean of a histogram's observations."""
    return f"{rate(f'{metric}_sum', by)} / {rate(f'{metric}_count', by)}"


SERVING = {
    "Traffic": (
        Panel(
            "Requests",
            "reqps",
            (
                (rate("vllm:request_success_total", "finished_reason"), "{{finished_reason}}"),
                (rate("vllm_prune_rejections_total", "reason"), "refused: {{reason}}"),
            ),
            "Finished by reason, and refused by us before any work.",
            stacked=True,
        ),
        Panel(
            "In flight",
            "short",
            (
                (f"sum(vllm_prune_inflight_requests{{{HERE}}})", "being answered"),
                (f"sum(vllm:num_requests_running{{{HERE}}})", "running"),
                (f"sum(vllm:num_requests_waiting{{{HERE}}})", "waiting in the engine"),
                (f"sum(vllm_prune_waiting_requests{{{HERE}}})", "waiting for room"),
            ),
            "Many being answered and few running: requests are prepared, which takes processor time.",
        ),
        Panel(
            "Visual tokens in flight",
            "short",
            ((f"sum by (instance) (vllm_prune_inflight_visual_tokens{{{HERE}}})", "{{instance}}"),),
            "Kept visual tokens of the requests being answered; the signal that replicas scale on.",
        ),
    ),
    "Latency": (
        Panel("Time to first token", "s", quantiles("vllm:time_to_first_token_seconds"), "From arrival in the engine."),
        Panel("Time between tokens", "s", quantiles("vllm:inter_token_latency_seconds"), "While decoding."),
        Panel("Whole request", "s", quantiles("vllm:e2e_request_latency_seconds"), "From arrival to the last token."),
        Panel(
            "Slow first tokens",
            "percentunit",
            (
                (f"vllm_prune:slow_first_token_ratio:rate5m{{{HERE}}}", "5 m"),
                (f"vllm_prune:slow_first_token_ratio:rate1h{{{HERE}}}", "1 h"),
                (f"vllm_prune:slow_first_token_ratio:rate6h{{{HERE}}}", "6 h"),
            ),
            "Share of first tokens after more than 2.5 s. The objective is 5%.",
        ),
    ),
    "Engine": (
        Panel(
            "KV cache in use",
            "percentunit",
            ((f"max by (instance) (vllm:kv_cache_usage_perc{{{HERE}}})", "{{instance}}"),),
            "Falls when evictions give blocks back.",
        ),
        Panel(
            "Tokens",
            "short",
            (
                (rate("vllm:prompt_tokens_total", "model_name"), "prefilled"),
                (rate("vllm:generation_tokens_total", "model_name"), "generated"),
            ),
            "Per second.",
        ),
        Panel(
            "Preemptions", "short", ((rate("vllm:num_preemptions_total", "instance"), "{{instance}}"),), "Per second."
        ),
    ),
}

PRUNING = {
    "Visual tokens": (
        Panel(
            "Kept of given",
            "percentunit",
            (
                (
                    rate("vllm_prune_visual_tokens_kept_total", "strategy, modality")
                    + " / "
                    + rate("vllm_prune_visual_tokens_input_total", "strategy, modality"),
                    "{{strategy}} {{modality}}",
                ),
            ),
            "1 for a strategy other than none: it does nothing.",
        ),
        Panel(
            "Given and kept",
            "short",
            (
                (rate("vllm_prune_visual_tokens_input_total", "model_name"), "given"),
                (rate("vllm_prune_visual_tokens_kept_total", "model_name"), "kept"),
            ),
            "Per second.",
        ),
        Panel(
            "Visual tokens per request",
            "short",
            (
                *((q, f"given {name}") for q, name in quantiles("vllm_prune_request_visual_tokens", ',stage="input"')),
                *((q, f"kept {name}") for q, name in quantiles("vllm_prune_request_visual_tokens", ',stage="kept"')),
            ),
            "Before and after pruning.",
        ),
        Panel(
            "Share kept per request",
            "percentunit",
            ((mean("vllm_prune_keep_ratio", "part"), "{{part}}"),),
            "Mean over requests with a budget; kv by the request's budget.",
        ),
    ),
    "KV eviction": (
        Panel(
            "Compactions",
            "short",
            ((rate("vllm_prune_kv_compactions_total", "strategy"), "{{strategy}}"),),
            "Per second.",
        ),
        Panel(
            "Rows evicted and blocks freed",
            "short",
            (
                (rate("vllm_prune_kv_tokens_evicted_total", "model_name"), "rows"),
                (rate("vllm_prune_kv_blocks_freed_total", "model_name"), "blocks"),
            ),
            "Per second. Rows without blocks: budgets are smaller than a block, or blocks are shared.",
        ),
        Panel(
            "Skipped",
            "short",
            ((rate("vllm_prune_kv_eviction_skipped_total", "reason"), "{{reason}}"),),
            "Evictions that were due and did not happen.",
        ),
    ),
    "Cost": (
        Panel(
            "Scoring",
            "s",
            ((mean("vllm_prune_score_seconds", "part, strategy"), "{{part}} {{strategy}}"),),
            "Mean per item, or per compaction. On a GPU this is launch time.",
        ),
        Panel("Compaction", "s", quantiles("vllm_prune_compaction_seconds"), "Per request, all layers."),
        Panel("Media fetch", "s", quantiles("vllm_prune_media_fetch_seconds"), "Per item, failures included."),
        Panel("Media decode", "s", quantiles("vllm_prune_media_decode_seconds"), "Per item."),
    ),
    "Refused and changed": (
        Panel("Refused", "reqps", ((rate("vllm_prune_rejections_total", "reason"), "{{reason}}"),), "Before any work."),
        Panel(
            "Budgets clamped",
            "reqps",
            ((rate("vllm_prune_budget_clamped_total", "reason"), "{{reason}}"),),
            "By limits.",
        ),
        Panel(
            "Media refused",
            "short",
            ((rate("vllm_prune_media_rejected_total", "reason"), "{{reason}}"),),
            "Items per second.",
        ),
        Panel(
            "Builds",
            "short",
            (("sum by (version, vllm) (vllm_prune_build_info)", "{{version}} on vLLM {{vllm}}"),),
            "0: the self-check failed, visual budgets are refused.",
        ),
    ),
}


def dashboard(uid: str, title: str, rows: dict[str, tuple[Panel, ...]]) -> dict[str, Any]:
    """A dashboard in Grafana's JSON model."""
    panels: list[dict[str, Any]] = []
    y = 0
    for name, row in rows.items():
        panels.append({"type": "row", "title": name, "collapsed": False, "gridPos": _place(0, y, 24, 1), "panels": []})
        width = 24 // len(row)
        panels += [_panel(panel, _place(i * width, y + 1, width, 8)) for i, panel in enumerate(row)]
        y += 9
    return {
        "uid": uid,
        "title": title,
        "tags": ["vllm-prune"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": [{"id": i, **panel} for i, panel in enumerate(panels, 1)],
    }


def _variables() -> list[dict[str, Any]]:
    query = "label_values(vllm_prune_build_info, model_name)"
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
        {
            "name": "model",
            "type": "query",
            "label": "Model",
            "datasource": SOURCE,
            "query": {"query": query, "refId": "model"},
            "definition": query,
            "includeAll": True,
            "multi": True,
            "allValue": ".*",
            "refresh": 2,
            "current": {"text": "All", "value": "$__all"},
        },
    ]


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    custom = {"fillOpacity": 10, "showPoints": "never", "stacking": {"mode": "normal" if panel.stacked else "none"}}
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.help,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(65 + i), "datasource": SOURCE, "expr": query, "legendFormat": legend}
            for i, (query, legend) in enumerate(panel.queries)
        ],
    }


def dashboards() -> dict[str, str]:
    """Text of each file, by its name."""
    found = {
        "serving": dashboard("vllm-prune-serving", "vllm-prune / serving", SERVING),
        "pruning": dashboard("vllm-prune-pruning", "vllm-prune / pruning", PRUNING),
    }
    return {f"{name}.json": json.dumps(content, indent=1) + "\n" for name, content in found.items()}


if __name__ == "__main__":
    for name, text in dashboards().items():
        (FOLDER / name).write_text(text)
