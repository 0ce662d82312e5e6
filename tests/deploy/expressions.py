"""Every PromQL expression of deploy/, and the metrics that it names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
# What Prometheus itself adds for every target.
OF_PROMETHEUS = {"up"}
# Parts of expressions that Grafana and helm put in.
VARIABLES = (("$__rate_interval", "5m"), ("$model", ".*"))


def expressions() -> dict[str, str]:
    """PromQL by where it stands."""
    found: dict[str, str] = {}
    for name in ("rules", "alerts"):
        for group in yaml.safe_load((DEPLOY / "prometheus" / f"{name}.yml").read_text())["groups"]:
            for rule in group["rules"]:
                found[f"{name}.yml: {rule.get('alert') or rule['record']}"] = rule["expr"]
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                found[f"{path.name}: {panel['title']} {target['refId']}"] = target["expr"]
        for variable in board["templating"]["list"]:
            if labels := re.fullmatch(r"label_values\((.+), \w+\)", variable.get("definition", "")):
                found[f"{path.name}: ${variable['name']}"] = labels[1]
    scaling = (DEPLOY / "helm" / "vllm-prune" / "templates" / "autoscaling.yaml").read_text()
    for i, query in enumerate(re.findall(r"query: '(.+)'", scaling)):
        found[f"autoscaling.yaml: {i}"] = re.sub(r"\{\{-? \$pods -?\}\}", "", query)
    for i, name in enumerate(re.findall(r"metric: \{name: (\w+)\}", scaling)):
        found[f"autoscaling.yaml: metric {i}"] = name
    return found


def recorded() -> set[str]:
    """Names of the recording rules."""
    groups = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())["groups"]
    return {rule["record"] for group in groups for rule in group["rules"]}


def parse(text: str) -> Any:
    """The parsed expression. Raises `ValueError` for one that is not PromQL."""
    for variable, value in VARIABLES:
        text = text.replace(variable, value)
    return promql_parser.parse(text)


def metrics_of(node: Any) -> Iterator[str]:
    """Names of the metrics that a parsed expression selects."""
    if isinstance(node, promql_parser.VectorSelector):
        assert node.name, node.prettify()
        yield node.name
    for attribute in ("lhs", "rhs", "expr", "vector_selector", "args"):
        below = getattr(node, attribute, None)
        for one in below if isinstance(below, list) else [below]:
            if one is not None:
                yield from metrics_of(one)


def scraped_names() -> set[str]:
    """Metrics that servers have to export for all expressions to mean something."""
    named = {name for text in expressions().values() for name in metrics_of(parse(text))}
    return named - recorded() - OF_PROMETHEUS
