"""The environment of a host process."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from mloc_prefect.execution.host_types import HostSpec
from mloc_prefect.execution.leased_devices import SHARE
from mloc_prefect.process.proxies import restored
from mloc_prefect.version import PACKAGE_DIR

_PRIVATE = frozenset(
    {
        *("MLOC_TOKEN", "ORCHESTRATOR_TOKEN", "PREFECT_INTEGRATIONS_MLOC_TOKEN"),
        *("MLOC_REDIS_URL", "REDIS_URL", "PREFECT_INTEGRATIONS_MLOC_REDIS_URL"),
        *("MLOC_EVENTS_REDIS_URL", "PREFECT_INTEGRATIONS_MLOC_EVENTS_REDIS_URL"),
        *("PREFECT_REDIS_MESSAGING_URL", "PREFECT_REDIS_MESSAGING_PASSWORD"),
        *("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"),
    }
)
"""Secrets of our services. Executors must not see them: they may run code that comes with a model."""


def child_environment(spec: HostSpec, run_dir: Path) -> dict[str, str]:
    """Return the variables of a host: ours without our secrets, the devices, and `spec.env`, which has the last word.

    The host runs this very copy of `mloc_prefect`, whatever its interpreter, and sees nothing else of our environment:
    `PYTHONPATH` starts with a directory that holds only a link to the package.
    """
    env = {**os.environ, **device_variables(spec.devices), SHARE: str(spec.share), **spec.env}
    env = {name: value for name, value in env.items() if name not in _PRIVATE}
    restored(env)
    inherited = env.get("PYTHONPATH")
    env["PYTHONPATH"] = os.pathsep.join([str(_package_link(run_dir)), *([inherited] if inherited else [])])
    return env


def device_variables(devices: Iterable[str]) -> dict[str, str]:
    """Return the CUDA variables for leased devices, e.g. `gpu:0` -> `CUDA_VISIBLE_DEVICES=0`.

    A host without a leased GPU sees none: memory that it took there would be missing for the engine that leased it.
    Devices are numbered as NVML does, in the order of the PCI bus.
    """
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpu_names(devices)), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def gpu_names(devices: Iterable[str]) -> list[str]:
    """Return the GPUs among leased devices as CUDA names them: `gpu:0` -> `0`."""
    return [name.partition(":")[2] for name in devices if name.startswith("gpu:")]


def _package_link(run_dir: Path) -> Path:
    """Return a directory that holds only a link `mloc_prefect` to this package."""
    package = PACKAGE_DIR
    digest = hashlib.sha256(os.fsencode(package)).hexdigest()[:8]
    directory = run_dir / f"lib-{digest}"
    directory.mkdir(exist_ok=True)
    link = directory / package.name
    if not link.is_symlink():
        fresh = directory / f"{package.name}.{os.getpid()}"
        fresh.symlink_to(package)
        fresh.replace(link)
    return directory
