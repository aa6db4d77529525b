"""The manifests of deploy/kubernetes, checked against the schemas of Kubernetes, without a cluster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from sandfleet_config.environment import check_environment
from sandfleet_config.settings import WorkerSettings

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
FILES = sorted(file.name for file in FOLDER.glob("*.yaml") if file.name != "kustomization.yaml")
VERSIONS = ("1.30", "1.33", "1.37")


def read(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def find(name: str, kind: str) -> dict[str, Any]:
    return next(item for item in read(name) if item["kind"] == kind)


def read_pod(name: str, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a pod and its one container."""
    pod: dict[str, Any] = find(name, kind)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", FILES)
def test_each_manifest_has_the_fields_of_its_kind_and_no_others(name: str, version: str) -> None:
    for item in read(name):
        kubernetes_validate.validate(item, version, strict=True)
        assert item["kind"] == "Namespace" or item["metadata"]["namespace"] == "sandfleet"


def test_the_schema_would_find_a_fault() -> None:
    item = find("worker.yaml", "DaemonSet")
    item["spec"]["template"]["spec"]["containers"][0]["comand"] = ["start"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(item, VERSIONS[0], strict=True)


def test_kustomize_gets_every_file_but_the_secret() -> None:
    assert sorted(read("kustomization.yaml")[0]["resources"]) == sorted(set(FILES) - {"redis-secret.example.yaml"})


def test_every_variable_is_a_setting() -> None:
    _, worker = read_pod("worker.yaml", "DaemonSet")
    config = find("worker.yaml", "ConfigMap")["data"]
    names = {*config, *(one["name"] for one in worker["env"])}
    check_environment(dict.fromkeys(names, "x"))
    _, web = read_pod("web.yaml", "Deployment")
    check_environment({one["name"]: "x" for one in web["env"]})
    # Kubernetes makes variables of a service's name, and sandfleet refuses what it does not know.
    assert not [
        item
        for name in FILES
        for item in read(name)
        if item["kind"] == "Service" and "sandfleet" in item["metadata"]["name"]
    ]
    for name, kind in (("worker.yaml", "DaemonSet"), ("web.yaml", "Deployment")):
        assert read_pod(name, kind)[0]["enableServiceLinks"] is False


def test_the_settings_are_valid() -> None:
    config = find("worker.yaml", "ConfigMap")["data"]
    flat = {key.removeprefix("SANDFLEET_").lower(): value for key, value in config.items() if "__" not in key}
    sections: dict[str, dict[str, str]] = {}
    for key, value in config.items():
        section, _, name = key.removeprefix("SANDFLEET_").lower().partition("__")
        if name:
            sections.setdefault(section, {})[name] = value
    assert WorkerSettings.model_validate(flat | sections).runsc.rootless


def test_the_nodes_name_is_the_hosts_and_a_stop_leaves_time_to_drain() -> None:
    pod, worker = read_pod("worker.yaml", "DaemonSet")
    host = next(one for one in worker["env"] if one["name"] == "SANDFLEET_HOST")
    assert host["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"
    drain = float(find("worker.yaml", "ConfigMap")["data"]["SANDFLEET_DRAIN_SECONDS"])
    assert pod["terminationGracePeriodSeconds"] >= drain + 60
    assert pod["nodeSelector"] == {"sandfleet.example/worker": "true"}


def test_passwords_come_from_secrets() -> None:
    for name in FILES:
        if "example" not in name:
            assert not re.search(r"rediss?://|password:", (FOLDER / name).read_text(), re.IGNORECASE)
    for name, kind in (("worker.yaml", "DaemonSet"), ("web.yaml", "Deployment")):
        url = next(one for one in read_pod(name, kind)[1]["env"] if one["name"] == "SANDFLEET_REDIS_URL")
        assert url["valueFrom"]["secretKeyRef"]["name"] == "sandfleet-redis"


def test_only_the_worker_has_rights_on_its_node() -> None:
    pod, web = read_pod("web.yaml", "Deployment")
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert web["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert web["securityContext"]["allowPrivilegeEscalation"] is False
    for name, kind in (("worker.yaml", "DaemonSet"), ("web.yaml", "Deployment")):
        known, container = read_pod(name, kind)
        assert not known.get("hostNetwork")
        assert not known.get("hostPID")
        assert known["automountServiceAccountToken"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_web_writes_its_history_alone() -> None:
    deployment = find("web.yaml", "Deployment")["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
