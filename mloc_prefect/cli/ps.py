"""`mloc ps` and `mloc down`: what the local runtime owns, and its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mloc_prefect.cli.boundary import examples
from mloc_prefect.cli.units import age_text, size_text

if TYPE_CHECKING:
    from collections.abc import Mapping

PS_EXAMPLES = examples("mloc ps", "mloc ps --json")
DOWN_EXAMPLES = examples("mloc down")


def ps(*, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show the local runtime: its Prefect server, its warm executors, who uses it."""
    from mloc_prefect.cli.console import print_json
    from mloc_prefect.orchestrate.runtime_client import runtime_status
    from mloc_prefect.settings import get_settings

    settings = get_settings()
    status = asyncio.run(runtime_status(settings))
    if as_json:
        print_json({"running": status is not None, "home": str(settings.home), **(status or {})})
        return
    for line in status_lines(status):
        print(line)


def down() -> None:
    """End the local runtime with its Prefect server and all warm executors. Results and history stay."""
    from mloc_prefect.orchestrate.runtime_client import stop_runtime
    from mloc_prefect.settings import get_settings

    ended = asyncio.run(stop_runtime(get_settings()))
    for what in ended:
        print(f"ended: {what}")
    if not ended:
        print("nothing was running")


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
        memory = f", {size_text(host['memory_bytes'])}" if host.get("memory_bytes") else ""
        used = f"used {age_text(host['last_used_seconds'])} ago"
        lines.append(f"host     {place}, {used}, process {host['pid']}{memory}")
    return lines
