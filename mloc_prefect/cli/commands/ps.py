"""`mloc ps` and `mloc down`: show and stop what runs on this machine for this `MLOC_HOME`."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mloc_prefect.cli.display.console import say
from mloc_prefect.cli.display.units import age_text, size_text
from mloc_prefect.cli.error_boundary import examples

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.services.up.up_state import UpState

PS_EXAMPLES = examples("mloc ps", "mloc ps --json")
DOWN_EXAMPLES = examples("mloc down")


def ps(*, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show the parts of `mloc up`, and the local runtime of `mloc run` with its warm executors."""
    from mloc_prefect.cli.display.console import print_json
    from mloc_prefect.services.local_runtime.runtime_client import runtime_status
    from mloc_prefect.services.up.up_state import running
    from mloc_prefect.settings import get_settings

    settings = get_settings()
    status = asyncio.run(runtime_status(settings))
    up = running(settings.home)
    if as_json:
        shown = {"running": status is not None, "home": str(settings.home), **(status or {})}
        print_json({**shown, "up": asdict(up) if up else None})
        return
    lines = [*(up_lines(up) if up else []), *(status_lines(status) if status or not up else [])]
    for line in lines:
        say(line)


def down() -> None:
    """Stop `mloc up` and the local runtime with all their processes. Results and history are kept."""
    from mloc_prefect.services.local_runtime.runtime_client import stop_runtime
    from mloc_prefect.services.up.up_state import stop_up
    from mloc_prefect.settings import get_settings

    settings = get_settings()
    ended = [*stop_up(settings.home), *asyncio.run(stop_runtime(settings))]
    for what in ended:
        say(f"ended: {what}")
    if not ended:
        say("nothing was running")


def up_lines(up: UpState) -> list[str]:
    """Return the lines of `mloc ps` about `mloc up`."""
    return [
        f"mloc up  process {up.pid}{'' if up.ready else ', starting'}",
        f"  endpoint {up.url}",
        f"  Prefect  {up.ui_url}{_login_note(up.auth_file)}",
        f"  Redis    {up.redis}",
        *(f"  {name:<8} {f'process {pid}' if pid else 'down'}" for name, pid in up.parts.items()),
    ]


def _login_note(auth_file: str | None) -> str:
    """Return how people log in to Prefect's pages; nothing for a server without a login of ours."""
    page = Path(auth_file).with_name("prefect.html") if auth_file else None
    return f"   log in: open {page.as_uri()}" if page and page.exists() else ""


def status_lines(status: Mapping[str, Any] | None) -> list[str]:
    """Return the lines of `mloc ps` about the local runtime."""
    if status is None:
        return ["nothing is running"]
    users = status["users"]
    lines = [f"runtime  process {status['pid']}, used by {users} run{'' if users == 1 else 's'}"]
    server = status["server"]
    lines.append(f"server   {server['ui_url']}, process {server['pid']}" if server else "server   none")
    if server and (note := _login_note(server.get("auth_file"))):
        lines.append(f"        {note}")
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
