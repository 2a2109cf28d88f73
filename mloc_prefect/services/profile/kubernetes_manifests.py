"""The profile as Kubernetes objects, and as values of Prefect's Helm chart; run as a module, it writes both files.

    python -m mloc_prefect.services.profile.kubernetes_manifests deploy/kubernetes

The Prefect servers and their services come from the chart `prefect/prefect-server`; everything else is here. Secrets
are made by hand, once, in the object `mloc`; passwords get into URLs by references between variables.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mloc_prefect.services.profile.part_images import image_of, user_of
from mloc_prefect.services.profile.topology import PROFILE, SERVER, part

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mloc_prefect.services.profile.topology import ProfilePart

SECRET = "mloc"  # noqa: S105  # the name of an object
KEYS = ("REDIS_PASSWORD", "POSTGRES_PASSWORD", "PREFECT_AUTH", "MLOC_TOKEN")
"""What the secret holds."""

_WORDS = {
    "store": "redis://:$(REDIS_PASSWORD)@redis:6379/0",
    "messages": "redis://:$(REDIS_PASSWORD)@redis:6379/1",
    "jobs": "redis://:$(REDIS_PASSWORD)@redis:6379/2",
    "database": "postgresql+asyncpg://prefect:$(POSTGRES_PASSWORD)@postgres/prefect",
    "prefect": "http://prefect-server:4200",
    "prefect_login": "$(PREFECT_AUTH)",
    "token": "$(MLOC_TOKEN)",
    "endpoint": "http://endpoint:8000",
    "results": "/results",
    "host": "0.0.0.0",  # noqa: S104  # inside of a pod
    "redis_password": "$(REDIS_PASSWORD)",
    "database_password": "$(POSTGRES_PASSWORD)",
}
_OF_CHART = ("prefect", "prefect-services")
_STORED = {"redis": "8Gi", "postgres": "20Gi"}
_HEAD = """\
# Generated from mloc_prefect/services/profile/topology.py by
#   python -m mloc_prefect.services.profile.kubernetes_manifests deploy/kubernetes
"""


def manifests() -> list[dict[str, Any]]:
    """Return all objects, in the order in which they are made."""
    found: list[dict[str, Any]] = [_results_claim()]
    for described in PROFILE:
        if described.name in _OF_CHART:
            continue
        if described.port:
            found.append(_service(described))
        found.append(_workload(described))
        if described.count > 1:
            found.append(_budget(described))
    return found


def chart_values() -> dict[str, Any]:
    """Return values for the chart of the Prefect server: as many servers, services apart, the same variables."""
    skipped = {
        "PREFECT_SERVER_API_AUTH_STRING",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL",
    }  # the chart has words for them
    environment = {name: value for name, value in SERVER.items() if name not in skipped}
    probe = {"enabled": True}
    return {
        "global": {"prefect": {"env": [*_secret_variables(), *_variables(environment)]}},
        "server": {
            "replicaCount": part("prefect").count,
            "basicAuth": {"enabled": True, "existingSecret": "prefect-auth"},
            "uiConfig": {"prefectUiApiUrl": "/api"},
            "livenessProbe": probe,
            "readinessProbe": probe,
        },
        "backgroundServices": {"runAsSeparateDeployment": True},
        "secret": {"create": False, "name": "prefect-database"},
        "postgresql": {"enabled": False},
    }


def files() -> dict[str, str]:
    """Return the texts of the two files by their names."""
    objects = yaml.safe_dump_all(manifests(), sort_keys=False, width=1000)
    values = yaml.safe_dump(chart_values(), sort_keys=False, width=1000)
    return {"mloc.yaml": f"{_HEAD}{objects}", "prefect-values.yaml": f"{_HEAD}{values}"}


def _workload(described: ProfilePart) -> dict[str, Any]:
    pod = {"metadata": {"labels": _labels(described)}, "spec": _pod(described)}
    if described.once:
        return _object("batch/v1", "Job", described, {"backoffLimit": 20, "template": pod})
    spec: dict[str, Any] = {
        "replicas": described.count,
        "selector": {"matchLabels": _labels(described)},
        "template": pod,
    }
    if described.data is None:
        # One at a time, and never fewer than described: what is replaced hands its work over first.
        strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
        return _object("apps/v1", "Deployment", described, {**spec, "strategy": strategy})
    claim = {
        "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": _STORED[described.name]}},
        },
    }
    more = {"serviceName": described.name, "volumeClaimTemplates": [claim]}
    return _object("apps/v1", "StatefulSet", described, {**spec, **more})


def _pod(described: ProfilePart) -> dict[str, Any]:
    user = user_of(described)
    container: dict[str, Any] = {"name": described.name, "image": image_of(described)}
    words = _WORDS | {"port": str(described.port)}
    filled = [argument.format_map(words) for argument in described.arguments]
    if filled:
        container["command"] = [described.program]
        container["args"] = filled
    container["env"] = [*_secret_variables(_keys_of(described)), *_variables(described.environment)]
    if described.program == "postgres":  # it makes its directory itself, below the mount, which is not its own
        container["env"].append({"name": "PGDATA", "value": f"{described.data}/pgdata"})
    if described.port:
        container["ports"] = [{"containerPort": described.port}]
    container |= _probes(described, words)
    container["securityContext"] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    volumes: list[dict[str, Any]] = []
    if described.data:
        container["volumeMounts"] = [{"name": "data", "mountPath": described.data}]
    elif described.results:
        container["volumeMounts"] = [{"name": "results", "mountPath": "/results"}]
        volumes = [{"name": "results", "persistentVolumeClaim": {"claimName": "results"}}]
    spec: dict[str, Any] = {
        "terminationGracePeriodSeconds": described.grace,
        "securityContext": {"runAsUser": user, "runAsNonRoot": True, "fsGroup": user},
        "containers": [container],
    }
    if described.once:
        spec["restartPolicy"] = "OnFailure"
    if volumes:
        spec["volumes"] = volumes
    if described.count > 1:
        spec["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": _labels(described)},
            }
        ]
    return spec


def _probes(described: ProfilePart, words: Mapping[str, str]) -> dict[str, Any]:
    if described.alive and described.ready:
        paths = {"livenessProbe": described.alive, "readinessProbe": described.ready}
        # Late rather than early: a probe that kills what only waits for a neighbour makes an outage longer.
        return {
            name: {
                "httpGet": {"path": path, "port": described.port},
                "periodSeconds": 10,
                "timeoutSeconds": 5,
                "failureThreshold": 6 if name == "livenessProbe" else 2,
                **({"initialDelaySeconds": 60} if name == "livenessProbe" else {}),
            }
            for name, path in paths.items()
        }
    if not described.check:
        return {}
    command = [word.format_map(words) for word in described.check]
    if any("$(" in word for word in command):  # a probe's command is not filled in by Kubernetes, but by a shell
        text = " ".join(re.sub(r"\$\((\w+)\)", r'"$\1"', word) for word in command)
        command = ["sh", "-c", text]
    return {"readinessProbe": {"exec": {"command": command}, "periodSeconds": 10, "timeoutSeconds": 5}}


def _service(described: ProfilePart) -> dict[str, Any]:
    spec = {"selector": _labels(described), "ports": [{"port": described.port, "targetPort": described.port}]}
    return _object("v1", "Service", described, spec)


def _budget(described: ProfilePart) -> dict[str, Any]:
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": _labels(described)}}
    return _object("policy/v1", "PodDisruptionBudget", described, spec)


def _results_claim() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "results"},
        # The class of a shared file system, such as NFS, is the cluster's choice.
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "100Gi"}}},
    }


def _object(version: str, kind: str, described: ProfilePart, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": described.name, "labels": _labels(described), "annotations": {"description": described.note}}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


def _labels(described: ProfilePart) -> dict[str, str]:
    return {"app.kubernetes.io/part-of": "mloc", "app.kubernetes.io/component": described.name}


def _secret_variables(keys: Sequence[str] = KEYS) -> list[dict[str, Any]]:
    """Return the secrets as variables; they come first, since later variables refer to them."""
    return [{"name": key, "valueFrom": {"secretKeyRef": {"name": SECRET, "key": key}}} for key in keys]


def _keys_of(described: ProfilePart) -> list[str]:
    """Return the secrets that a part needs: it gets no others."""
    texts = (*described.arguments, *described.check, *described.environment.values())
    named = " ".join(text.format_map(_WORDS | {"port": ""}) for text in texts)
    return [key for key in KEYS if f"$({key})" in named]


def _variables(environment: Mapping[str, str]) -> list[dict[str, Any]]:
    filled = {name: value.format_map(_WORDS) for name, value in environment.items()}
    return [{"name": name, "value": value} for name, value in filled.items() if value != f"$({name})"]


def main(folder: str) -> None:
    """Write the files."""
    for name, text in files().items():
        (Path(folder) / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
