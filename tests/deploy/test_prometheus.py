"""Rules, alerts and dashboards: they parse, fire when they should, and are documented."""

from __future__ import annotations

import json
import re
import runpy

import pytest
import yaml

from .conftest import DEPLOY, ROOT, Run
from .expressions import expressions, metrics_of, parse, recorded

ALERTS = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]


@pytest.mark.parametrize("place", expressions())
def test_expressions_parse(place: str) -> None:
    assert list(metrics_of(parse(expressions()[place])))


def test_recorded_names_are_used() -> None:
    used = {name for text in expressions().values() for name in metrics_of(parse(text))}
    assert recorded() <= used


def test_prometheus_takes_its_configuration(promtool: Run) -> None:
    found = promtool("check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"{len(ALERTS)} rules found" in found.stdout


@pytest.mark.slow
def test_alerts_fire_when_they_should(promtool: Run) -> None:
    path = ROOT / "tests" / "deploy" / "alerts_test.yml"
    found = promtool("test", "rules", path)
    assert found.returncode == 0, found.stdout + found.stderr
    cases = yaml.safe_load(path.read_text())["tests"]
    tested = {
        (case["alertname"], bool(case.get("exp_alerts"))) for test in cases for case in test.get("alert_rule_test", ())
    }
    assert tested == {(rule["alert"], fires) for rule in ALERTS for fires in (True, False)}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_has_a_runbook(rule: dict[str, dict[str, str]]) -> None:
    path, anchor = rule["annotations"]["runbook"].split("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(), flags=re.MULTILINE)
    assert anchor in {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert rule["labels"]["severity"] in ("warning", "critical")


def test_dashboards_are_as_built() -> None:
    built = runpy.run_path(str(DEPLOY / "grafana" / "build.py"))["dashboards"]()
    folder = DEPLOY / "grafana" / "dashboards"
    assert {path.name: path.read_text() for path in folder.iterdir()} == built
    for text in built.values():
        board = json.loads(text)
        squares = [
            (place["x"] + x, place["y"] + y)
            for place in (panel["gridPos"] for panel in board["panels"])
            for x in range(place["w"])
            for y in range(place["h"])
        ]
        assert len(squares) == len(set(squares)), "panels overlap"
        assert max(x for x, _ in squares) < 24


def test_grafana_finds_its_data_and_its_dashboards() -> None:
    provisioning, compose = DEPLOY / "grafana" / "provisioning", yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "vllm-prune.yaml").read_text())["providers"]
    mounted = {volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]}
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose["services"]
    assert {provider["options"]["path"], "/etc/grafana/provisioning"} <= mounted
