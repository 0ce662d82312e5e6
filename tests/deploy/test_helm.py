"""The chart: linted and rendered by helm itself, its objects checked against Kubernetes' schemas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from vllm_prune.config.load import load

from .command_lines import served
from .conftest import CHART, DEPLOY, Run

SETS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "cpu": {"gpu": {"count": 0}, "image": {"tag": "cpu"}, "model": "/models/demo_model/checkpoint"},
    "all": {
        "gpu": {"count": 4},
        "servedModelName": "vision",
        "extraArgs": ["--max-model-len", "32768"],
        "extraEnv": [{"name": "VLLM_LOGGING_LEVEL", "value": "INFO"}],
        "apiKey": {"existingSecret": "keys"},
        "huggingFaceToken": {"existingSecret": "hub"},
        "tracing": {"endpoint": "http://collector:4318", "protocol": "http/protobuf"},
        "cache": {"enabled": True, "storageClass": "fast"},
        "autoscaling": {"kind": "keda"},
        "monitoring": {"serviceMonitor": True, "rules": True, "dashboards": True, "labels": {"release": "prom"}},
        "imagePullSecrets": [{"name": "registry"}],
        "podAnnotations": {"a": "b"},
        "podLabels": {"team": "vision"},
        "nodeSelector": {"gpu": "h100"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {}}
        ],
        "serviceAccount": {"annotations": {"role": "reader"}},
    },
    "hpa": {"autoscaling": {"kind": "hpa"}, "existingConfigSecret": "prune", "podDisruptionBudget": {"enabled": False}},
}
# Custom resources have no schema in Kubernetes' own.
CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
VERSIONS = ("1.30", "1.37")


def render(helm: Run, folder: Path, values: dict[str, Any]) -> list[dict[str, Any]]:
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    found = helm("template", "demo", CHART, "--namespace", "models", "--values", path)
    assert found.returncode == 0, found.stderr
    return [one for one in yaml.safe_load_all(found.stdout) if one]


@pytest.fixture(scope="module")
def rendered(helm: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, Any]]]:
    """Objects by kind, or kind and name, of each set of values."""
    folder = tmp_path_factory.mktemp("values")
    return {
        name: {f"{one['kind']} {one['metadata']['name']}": one for one in render(helm, folder, values)}
        for name, values in SETS.items()
    }


def pod(objects: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    spec = objects["Deployment demo-vllm-prune"]["spec"]["template"]["spec"]
    return spec, spec["containers"][0]


def test_lint(helm: Run) -> None:
    found = helm("lint", "--strict", CHART)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", SETS)
def test_kubernetes_takes_every_object(rendered: dict[str, Any], name: str, version: str) -> None:
    for key, one in rendered[name].items():
        if one["kind"] not in CUSTOM:
            kubernetes_validate.validate(one, version, strict=True)
        assert one["metadata"]["labels"]["app.kubernetes.io/instance"] == "demo", key


def test_which_objects(rendered: dict[str, Any]) -> None:
    always = {"Deployment demo-vllm-prune", "Service demo-vllm-prune", "ServiceAccount demo-vllm-prune"}
    config, budget = {"ConfigMap demo-vllm-prune"}, {"PodDisruptionBudget demo-vllm-prune"}
    assert set(rendered["defaults"]) == always | config | budget
    assert set(rendered["hpa"]) == always | {"HorizontalPodAutoscaler demo-vllm-prune"}
    boards = {"ConfigMap demo-vllm-prune-serving", "ConfigMap demo-vllm-prune-pruning"}
    custom = {f"{kind} demo-vllm-prune" for kind in CUSTOM}
    assert set(rendered["all"]) == always | config | budget | boards | custom | {
        "PersistentVolumeClaim demo-vllm-prune"
    }


@pytest.mark.parametrize("name", SETS)
def test_probes_and_drain(rendered: dict[str, Any], name: str) -> None:
    from server.endpoint import router

    spec, server = pod(rendered[name])
    paths = {probe: server[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert set(paths.values()) <= {route.path for route in router.routes}
    assert paths == {
        "startupProbe": "/health/startup",
        "readinessProbe": "/health/ready",
        "livenessProbe": "/health/live",
    }
    (drain,) = (int(arg.split("=")[1]) for arg in server["args"] if arg.startswith("--shutdown-timeout="))
    pause = server["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > pause + drain
    assert server["startupProbe"]["failureThreshold"] * server["startupProbe"]["periodSeconds"] >= 1200


@pytest.mark.parametrize("name", SETS)
def test_nothing_is_privileged(rendered: dict[str, Any], name: str) -> None:
    spec, server = pod(rendered[name])
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    # A service called vllm-prune would otherwise set variables such as VLLM_PRUNE_PORT.
    assert spec["enableServiceLinks"] is False
    own = server["securityContext"]
    assert (own["allowPrivilegeEscalation"], own["readOnlyRootFilesystem"]) == (False, True)
    assert own["capabilities"] == {"drop": ["ALL"]}
    mounted = {mount["name"] for mount in server["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}


@pytest.mark.parametrize("model", ["", "Qwen/Qwen3-VL-8B-Instruct", "org/model.with-odd_name", "/models/mine"])
def test_a_hub_name_reaches_the_server_unchanged(helm: Run, tmp_path: Path, model: str) -> None:
    """As the positional argument of `vllm-prune serve`, the image's entry point."""
    objects = render(helm, tmp_path, {"model": model} if model else {})
    (deployment,) = (one for one in objects if one["kind"] == "Deployment")
    (server,) = deployment["spec"]["template"]["spec"]["containers"]
    assert "command" not in server
    passed = served("Dockerfile.cuda", server["args"])
    assert passed.model == (model or "Qwen/Qwen2.5-VL-7B-Instruct")
    assert passed.config == "/etc/vllm-prune/prune.yaml"
    assert passed.rest == ["--host=0.0.0.0", "--port=8000", "--shutdown-timeout=45"]


def test_gpus_and_secrets(rendered: dict[str, Any]) -> None:
    _, plain = pod(rendered["defaults"])
    _, cpu = pod(rendered["cpu"])
    _, full = pod(rendered["all"])
    assert plain["resources"]["limits"]["nvidia.com/gpu"] == plain["resources"]["requests"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in cpu["resources"]["limits"]
    assert "--tensor-parallel-size=4" in full["args"]
    assert not [arg for arg in plain["args"] if arg.startswith("--tensor")]
    secrets = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in full["env"] if "valueFrom" in one}
    assert secrets == {
        "VLLM_API_KEY": {"name": "keys", "key": "api-key"},
        "HF_TOKEN": {"name": "hub", "key": "token"},
    }
    assert not [one for one in plain["env"] if "valueFrom" in one]


def test_the_configuration_is_one_that_the_server_takes(rendered: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "prune.yaml"
    path.write_text(rendered["defaults"]["ConfigMap demo-vllm-prune"]["data"]["prune.yaml"])
    assert load(path).limits.max_tokens == 8192
    _, server = pod(rendered["defaults"])
    mounts = {mount["name"]: mount["mountPath"] for mount in server["volumeMounts"]}
    assert f"--config={mounts['config']}/prune.yaml" in server["args"]


def test_rules_and_dashboards_are_those_of_deploy(rendered: dict[str, Any]) -> None:
    groups = rendered["all"]["PrometheusRule demo-vllm-prune"]["spec"]["groups"]
    files = [yaml.safe_load((DEPLOY / "prometheus" / f"{name}.yml").read_text()) for name in ("rules", "alerts")]
    assert groups == [group for file in files for group in file["groups"]]
    for name in ("serving", "pruning"):
        data = rendered["all"][f"ConfigMap demo-vllm-prune-{name}"]["data"][f"vllm-prune-{name}.json"]
        assert data.strip() == (DEPLOY / "grafana" / "dashboards" / f"{name}.json").read_text().strip()


def test_keda_asks_for_this_releases_pods(rendered: dict[str, Any]) -> None:
    triggers = rendered["all"]["ScaledObject demo-vllm-prune"]["spec"]["triggers"]
    pods = '{namespace="models", pod=~"demo-vllm-prune-.*"}'
    assert [trigger["metadata"]["query"] for trigger in triggers] == [
        f"sum(vllm_prune_inflight_visual_tokens{pods})",
        f"sum(vllm:num_requests_waiting{pods})",
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"modle": "typo"},
        {"model": ""},
        {"gpu": {"count": -1}},
        {"gpu": {"count": "two"}},
        {"shutdownTimeout": 0},
        {"autoscaling": {"kind": "vpa"}},
        {"config": {"limit": {}}},
        {"extraArgs": ["--api-key=secret"]},
        {"extraArgs": ["--shutdown_timeout", "5"]},
        {"sharedMemory": "plenty"},
        {"image": {"repository": "a", "tag": ""}},
    ],
    ids=str,
)
def test_wrong_values_are_refused(helm: Run, tmp_path: Path, values: dict[str, Any]) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    found = helm("template", "demo", CHART, "--values", path)
    assert found.returncode != 0
    assert "schema" in found.stderr
