"""The images of the profile are those that deploy/Dockerfile makes, and run as the user that it makes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mloc_prefect.services.profile.part_images import OUR_USER, TARGETS, TRAIN, TRAIN_EXTRAS, is_built
from mloc_prefect.services.profile.topology import PROFILE

DEPLOY = Path(__file__).parents[3] / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
MADE = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, flags=re.MULTILINE | re.DOTALL))
OURS = [part.name for part in PROFILE if is_built(part)]
SERVICES = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
PODS: dict[str, dict[str, Any]] = {
    found["metadata"]["name"]: found["spec"]["template"]["spec"]
    for found in yaml.safe_load_all((DEPLOY / "kubernetes" / "mloc.yaml").read_text(encoding="utf-8"))
    if "template" in found["spec"]
}


def test_the_dockerfile_makes_these_images() -> None:
    assert set(MADE) - {"wheel"} == set(TARGETS)
    assert f"ARG EXTRAS={TRAIN_EXTRAS}\n" in MADE[TRAIN]


@pytest.mark.parametrize("image", TARGETS)
def test_an_image_has_our_user(image: str) -> None:
    assert re.findall(r"^USER (\S+)$", MADE[image], flags=re.MULTILINE) == [str(OUR_USER)]
    assert re.findall(r"useradd --uid (\d+) (?!.*--(?:gid|no-user-group))", MADE[image]) == [str(OUR_USER)]


@pytest.mark.parametrize("name", OURS)
def test_compose_builds_the_image_that_it_runs(name: str) -> None:
    service = SERVICES[name]
    assert service["image"] == service["build"]["target"]
    assert service["image"] in MADE
    assert set(service["build"].get("args", ())) <= set(re.findall(r"^ARG (\w+)", MADE[service["image"]], re.MULTILINE))


@pytest.mark.parametrize("name", [name for name in OURS if name in PODS])
def test_a_pod_runs_the_same_image_as_the_user_of_it(name: str) -> None:
    (container,) = PODS[name]["containers"]
    assert container["image"] == SERVICES[name]["image"]
    (user,) = re.findall(r"^USER (\d+)$", MADE[container["image"]], flags=re.MULTILINE)
    context = PODS[name]["securityContext"]
    assert (str(context["runAsUser"]), str(context["fsGroup"])) == (user, user)


def test_stores_have_public_images() -> None:
    for name in set(SERVICES) - set(OURS):
        assert "build" not in SERVICES[name]
        assert PODS[name]["containers"][0]["image"] == SERVICES[name]["image"]
