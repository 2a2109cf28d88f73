"""The profile as deploy/compose.yaml; `python -m mloc_prefect.services.profile.compose_file` writes it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import yaml

from mloc_prefect.services.profile.part_images import TRAIN, TRAIN_EXTRAS, image_of, is_built
from mloc_prefect.services.profile.topology import PROFILE

if TYPE_CHECKING:
    from mloc_prefect.services.profile.topology import ProfilePart

_HEAD = """\
# All parts as containers, each more than once, with the results on NFS, so that every machine sees the same files.
# Generated from mloc_prefect/services/profile/topology.py by
#   python -m mloc_prefect.services.profile.compose_file > deploy/compose.yaml
#
#   cp deploy/example.env deploy/.env        # then set the secrets and the NFS server in it
#   docker compose -f deploy/compose.yaml up --build
#
# For workers on other machines, copy the same files and .env there, and run
#   docker compose -f deploy/compose.yaml run --no-deps worker
name: mloc

services:
"""
_VOLUMES = """\
volumes:
  redis: {}
  postgres: {}
  results:
    driver: local
    driver_opts:
      type: nfs
      # `hard`: writes wait while the server is unreachable, instead of losing data.
      o: addr=${NFS_SERVER:?set it in deploy/.env},rw,hard,nfsvers=4.1
      device: ":${NFS_PATH:-/export/mloc}"
"""

# Another server, with TLS or behind Sentinel, is a URL without a database in REDIS_SERVER.
_REDIS = "${REDIS_SERVER:-redis://:${REDIS_PASSWORD}@${REDIS_HOST:-redis}:6379}"
_WORDS = {
    "store": f"{_REDIS}/0",
    "messages": f"{_REDIS}/1",
    "jobs": f"{_REDIS}/2",
    "database": "${DATABASE_URL:-postgresql+asyncpg://prefect:${POSTGRES_PASSWORD}@postgres/prefect}",
    "prefect": "http://${PREFECT_HOST:-prefect}:4200",
    "prefect_login": "${PREFECT_AUTH:?set it in deploy/.env, as user:password}",
    "token": "${MLOC_TOKEN:?set it in deploy/.env}",
    "endpoint": "${MLOC_BASE_URL:-http://endpoint:8000}",
    "results": "/results",
    "host": "0.0.0.0",  # noqa: S104  # inside of a container
    "redis_password": "${REDIS_PASSWORD:?set it in deploy/.env}",
    "database_password": "${POSTGRES_PASSWORD:?set it in deploy/.env}",
}
_PUBLISHED = {
    "redis": "${REDIS_BIND:-127.0.0.1}:6379:6379",
    "prefect": "${PREFECT_BIND:-127.0.0.1}:4200-4201:4200",
    "endpoint": "${ENDPOINT_BIND:-0.0.0.0}:8000-8001:8000",
}
"""Ports of the machine; of several containers each takes one of a range."""
_COUNTS = {"worker": "${WORKERS:-3}"}
_GPUS = """\
    # With GPUs, and WORKERS=1 in .env:
    # deploy: {resources: {reservations: {devices: [{driver: nvidia, count: all, capabilities: [gpu]}]}}}
"""


class _LinesOfLists(yaml.SafeDumper):
    """Writes each list on one line, as people write commands, and each entry of a mapping on a line of its own."""


def _on_one_line(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


_LinesOfLists.add_representer(list, _on_one_line)


def compose_file() -> str:
    """Return the text of deploy/compose.yaml."""
    services = []
    for part in PROFILE:
        text = yaml.dump({part.name: _service(part)}, Dumper=_LinesOfLists, sort_keys=False, width=1000)
        body = "".join(f"  {line}\n" for line in text.splitlines())
        gpus = _GPUS if part.name == "worker" else ""
        services.append(f"  # {part.note}\n{body}{gpus}")
    return _HEAD + "\n".join(services) + "\n" + _VOLUMES


def _service(part: ProfilePart) -> dict[str, Any]:
    words = _WORDS | {"port": str(part.port)}
    found: dict[str, Any] = {"image": image_of(part)}
    if is_built(part):
        found["build"] = _build(part)
    found["restart"] = "on-failure" if part.once else "unless-stopped"
    if is_built(part):
        found["entrypoint"] = [part.program]
    if part.arguments:
        program = [] if is_built(part) else [part.program]
        found["command"] = [*program, *(_filled(argument, words) for argument in part.arguments)]
    if part.environment:
        found["environment"] = {name: _filled(value, words) for name, value in part.environment.items()}
    if part.count > 1:
        found["deploy"] = {"replicas": _COUNTS.get(part.name, part.count)}
    if part.name in _PUBLISHED:
        found["ports"] = [_PUBLISHED[part.name]]
    if part.after:
        found["depends_on"] = {name: {"condition": _condition(name)} for name in part.after}
    volumes = [f"{part.name}:{part.data}"] if part.data else ["results:/results"] if part.results else []
    if volumes:
        found["volumes"] = volumes
    if check := _check(part, words):
        found["healthcheck"] = check
    found["stop_grace_period"] = f"{part.grace}s"
    return found


def _filled(text: str, words: dict[str, str]) -> str:
    """Return `text` with the names in braces replaced."""
    return text.format_map(words)


def _build(part: ProfilePart) -> dict[str, Any]:
    build: dict[str, Any] = {"context": "..", "dockerfile": "deploy/Dockerfile", "target": image_of(part)}
    if image_of(part) == TRAIN:
        build["args"] = {"EXTRAS": f"${{WORKER_EXTRAS:-{TRAIN_EXTRAS}}}"}
    return build


def _condition(name: str) -> str:
    needed = next(part for part in PROFILE if part.name == name)
    return "service_completed_successfully" if needed.once else "service_healthy"


def _check(part: ProfilePart, words: dict[str, str]) -> dict[str, Any]:
    if part.ready:
        url = f"http://127.0.0.1:{part.port}{part.ready}"
        test = ["CMD", "python", "-c", f"import urllib.request as r; r.urlopen('{url}', timeout=5)"]
    elif part.check:
        test = ["CMD", *(_filled(word, words) for word in part.check)]
    else:
        return {}
    return {"test": test, "interval": "5s", "timeout": "10s", "retries": 40}


if __name__ == "__main__":
    sys.stdout.write(compose_file())
