"""`mloc ps` and `mloc down`: what runs on this machine for this `MLOC_HOME`, and its end."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mloc_prefect.cli.boundary import examples
from mloc_prefect.cli.units import age_text, size_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.up.state import UpState

PS_EXAMPLES = examples("mloc ps", "mloc ps --json")
DOWN_EXAMPLES = examples("mloc down")


def ps(*, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show what runs here: the parts of `mloc up`, and the local runtime of `mloc run` with its warm executors."""
    from mloc_prefect.cli.console import print_json
    from mloc_prefect.orchestrate.runtime_client import runtime_status
    from mloc_prefect.settings import get_settings
    from mloc_prefect.up.state import running

    settings = get_settings()
    status = asyncio.run(runtime_status(settings))
    up = running(settings.home)
    if as_json:
        shown = {"running": status is not None, "home": str(settings.home), **(status or {})}
        print_json({**shown, "up": asdict(up) if up else None})
        return
    lines = [*(up_lines(up) if up else []), *(status_lines(status) if status or not up else [])]
    for line in lines:
        print(line)


def down() -> None:
    """End `mloc up` and the local runtime, with all that belongs to them. Results and history stay."""
    from mloc_prefect.orchestrate.runtime_client import stop_runtime
    from mloc_prefect.settings import get_settings
    from mloc_prefect.up.state import stop_up

    settings = get_settings()
    ended = [*stop_up(settings.home), *asyncio.run(stop_runtime(settings))]
    for what in ended:
        print(f"ended: {what}")
    if not ended:
        print("nothing was running")


def up_lines(up: UpState) -> list[str]:
    """Return what `mloc ps` prints of `mloc up`."""
    return [
        f"mloc up  process {up.pid}{'' if up.ready else ', starting'}",
        f"  endpoint {up.url}",
        f"  Prefect  {up.ui_url}",
        f"  Redis    {up.redis}",
        *(f"  {name:<8} {f'process {pid}' if pid else 'down'}" for name, pid in up.parts.items()),
    ]


def status_lines(status: Mapping[str, Any] | None) -> list[str]:
    """Return what `mloc ps` prints."""
    if status is None:
        return ["nothing is running"]
    users = status["users"]
    lines = [f"runtime  process {status['pid']}, used by {users} run{'' if users == 1 else 's'}"]
    server = status["server"]
    lines.append(f"server   {server['ui_url']}, process {server['pid']}" if server else "server   none")
    for host in status["hosts"]:
        devices = ", ".join(host["devices"])
        place = f"{host['executor']} on {devices}" if devices else host["executor"]
        model = f", {host['model']}" if host.get("model") else ""
        memory = f", {size_text(host['memory_bytes'])} of RAM" if host.get("memory_bytes") else ""
        memory += f", {size_text(host['gpu_memory_bytes'])} on GPUs" if host.get("gpu_memory_bytes") else ""
        memory += ", asleep" if host.get("asleep") else ""
        used = f"used {age_text(host['last_used_seconds'])} ago"
        lines.append(f"host     {place}{model}, {used}, process {host['pid']}{memory}")
    return lines
