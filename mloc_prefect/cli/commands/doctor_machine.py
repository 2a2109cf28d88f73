"""`mloc doctor` on what lies around us: installed versions, shared memory, the endpoint's port, the Prefect server."""

from __future__ import annotations

import re
import shutil
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_prefect.cli.commands.doctor_finding import DoctorFinding
from mloc_prefect.cli.display.units import size_text
from mloc_prefect.errors import DispatchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from packaging.requirements import Requirement

    from mloc_prefect.hardware.inventory import Inventory
    from mloc_prefect.settings import MlocSettings

_DISTRIBUTION = "mloc-prefect"
_SHARED = Path("/dev/shm")  # noqa: S108 - the mount itself is looked at
_SHARED_ENOUGH = 1 << 30  # processes of one engine or training exchange tensors there; containers have 64 MiB
_SKEW_SECONDS = 5.0  # leases, heartbeats and scheduled times of several machines are compared


def wrong_versions() -> Iterator[DoctorFinding]:
    """Yield the packages whose installed version this package does not admit."""
    for name, wanted in _requirements(metadata.requires(_DISTRIBUTION) or ()).items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            if needed := [one for one in wanted if "extra" not in str(one.marker or "")]:
                yield DoctorFinding("package", name, "bad", "not installed", _install(needed[0]))
            continue
        if not any(one.specifier.contains(version, prereleases=True) for one in wanted):
            text = f"{version} is installed; {_DISTRIBUTION} needs {' or '.join(str(one.specifier) for one in wanted)}"
            yield DoctorFinding("package", name, "bad", text, _install(wanted[0]), {"version": version})


def _requirements(lines: Iterable[str]) -> dict[str, list[Requirement]]:
    """Return requirements by name, those of extras included: several may name a package, and one of them suffices."""
    from packaging.requirements import Requirement

    found: dict[str, list[Requirement]] = {}
    for line in lines:
        one = Requirement(line)
        extra = re.search(r'extra == "([^"]+)"', str(one.marker or ""))
        if one.marker is None or one.marker.evaluate({"extra": extra[1] if extra else ""}):
            found.setdefault(one.name, []).append(one)
    found.pop(_DISTRIBUTION, None)  # extras name each other
    return found


def _install(one: Requirement) -> str:
    return f"pip install '{one.name}{one.specifier}'"


def shared_memory(inventory: Inventory, mount: Path = _SHARED) -> Iterator[DoctorFinding]:
    """Yield how large shared memory is, where it is small."""
    if not mount.is_dir():
        return
    size = shutil.disk_usage(mount).total
    if size < _SHARED_ENOUGH:
        who = "an engine on several GPUs" if len(inventory.gpus) > 1 else "a task of several processes"
        text = f"{size_text(size)} in {mount}: {who} may fail for want of it"
        yield DoctorFinding("machine", "shared memory", "note", text, "docker run --shm-size=8g", {"bytes": size})


def endpoint_port(settings: MlocSettings) -> Iterator[DoctorFinding]:
    """Yield the endpoint's port when another program has it; the other ports of `mloc up` give way by themselves."""
    from mloc_prefect.process.exposure import EVERYWHERE, LOOPBACK
    from mloc_prefect.process.free_port import is_free
    from mloc_prefect.services.up.up_state import running

    if running(settings.home) is not None:
        return
    host = settings.host or (EVERYWHERE if settings.token else LOOPBACK)
    try:
        free = is_free(host, settings.port)
    except OSError as error:
        yield DoctorFinding("machine", "endpoint", "note", f"{host} is no address of this machine: {error.strerror}")
        return
    if not free:
        text = f"port {settings.port} of {host} is in use by another program: `mloc up` will not start"
        yield DoctorFinding("machine", "endpoint", "note", text, "set MLOC_PORT, or mloc up --port PORT")


async def prefect_server(url: str) -> list[DoctorFinding]:
    """Return whether the Prefect server answers, and how far its clock is from ours."""
    from prefect.client.orchestration import get_client

    from mloc_prefect.cli.prefect_api import reachable, using_api
    from mloc_prefect.prefect_ext.requests import server_time

    try:
        await reachable(url)
    except DispatchError as error:
        return [DoctorFinding("prefect", "server", "bad", error.message, error.hint)]
    with using_api(url):
        async with get_client() as client:
            theirs = await server_time(client)
    return [] if theirs is None else list(clock_skew(theirs, datetime.now(UTC)))


def clock_skew(theirs: datetime, ours: datetime) -> Iterator[DoctorFinding]:
    """Yield the difference of two clocks, if it matters; theirs was cut to whole seconds."""
    seconds = (ours - theirs).total_seconds()
    if abs(seconds) > _SKEW_SECONDS:
        text = f"its clock is {abs(seconds):.0f} s {'behind' if seconds > 0 else 'ahead of'} that of this machine"
        fix = "synchronise both clocks (chrony, systemd-timesyncd)"
        yield DoctorFinding("prefect", "clock", "bad", text, fix, {"seconds": round(-seconds)})
