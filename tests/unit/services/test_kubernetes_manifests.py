"""deploy/kubernetes is what the description makes, and what the Kubernetes API takes."""

from __future__ import annotations

import re
from pathlib import Path

import kubernetes_validate
import pytest

from mloc_prefect.services.profile.kubernetes_manifests import KEYS, chart_values, files, manifests
from mloc_prefect.services.profile.topology import PROFILE

FOLDER = Path(__file__).parents[3] / "deploy" / "kubernetes"
OBJECTS = manifests()
WORKLOADS = {o["metadata"]["name"]: o for o in OBJECTS if o["kind"] in {"Deployment", "StatefulSet", "Job"}}
VERSIONS = ("1.30", "1.34")


def test_the_files_are_up_to_date():
    again = "run python -m mloc_prefect.services.profile.kubernetes_manifests deploy/kubernetes"
    assert {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()} == files(), again


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("found", OBJECTS, ids=lambda o: f"{o['kind']}-{o['metadata']['name']}")
def test_an_object_is_one_of_the_api(found, version):
    kubernetes_validate.validate(found, version, strict=True)


def test_a_wrong_object_is_found():
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**OBJECTS[-1], "replicas": 2}, VERSIONS[0], strict=True)


def test_every_part_is_here_or_in_the_chart():
    assert set(WORKLOADS) == {part.name for part in PROFILE} - {"prefect", "prefect-services"}
    for part in PROFILE:
        if part.name in WORKLOADS and not part.once:
            assert WORKLOADS[part.name]["spec"]["replicas"] == part.count
    values = chart_values()
    assert values["server"]["replicaCount"] == 2
    assert values["backgroundServices"]["runAsSeparateDeployment"] is True
    names = {variable["name"] for variable in values["global"]["prefect"]["env"]}
    assert {"PREFECT_REDIS_MESSAGING_URL", "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"} <= names


def test_variables_refer_to_secrets_that_stand_before_them():
    for found in WORKLOADS.values():
        (container,) = found["spec"]["template"]["spec"]["containers"]
        seen: set[str] = set()
        for variable in container["env"]:
            assert set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))) <= seen
            seen.add(variable["name"])
        assert set(re.findall(r"\$\((\w+)\)", " ".join(container.get("args", [])))) <= seen


def test_a_part_gets_the_secrets_that_it_needs_and_no_others():
    needed = {
        name: {v["name"] for v in w["spec"]["template"]["spec"]["containers"][0]["env"] if "valueFrom" in v}
        for name, w in WORKLOADS.items()
    }
    assert needed["redis"] == {"REDIS_PASSWORD"}
    assert needed["postgres"] == {"POSTGRES_PASSWORD"}
    assert needed["worker"] == {"REDIS_PASSWORD", "PREFECT_AUTH", "MLOC_TOKEN"}
    assert set().union(*needed.values()) == set(KEYS)


def test_a_pod_has_the_time_that_its_part_needs_to_stop():
    for part in PROFILE:
        if part.name in WORKLOADS:
            assert WORKLOADS[part.name]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == part.grace
