"""`mloc env`: Python environments of executors that cannot be installed together with Prefect."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mloc_prefect.cli.error_boundary import examples

CREATE_EXAMPLES = examples("mloc env create vllm-cpu", "mloc env create train --uv")
LIST_EXAMPLES = examples("mloc env list")


def create_env(
    name: Annotated[str, typer.Argument(metavar="NAME", help="vllm, vllm-cpu, train or ppo.")],
    *,
    uv: Annotated[bool, typer.Option("--uv", help="Install with uv, from the package sources of pip.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Rebuild it, even if it is up to date.")] = False,
) -> None:
    """Build an executor environment from pinned versions, unless it is up to date."""
    from mloc_prefect.execution.environments.builder import create
    from mloc_prefect.execution.environments.catalog import environment
    from mloc_prefect.execution.environments.inspection import faults, packages_of
    from mloc_prefect.hardware.inventory import read_inventory
    from mloc_prefect.hardware.nvml import driver_cuda
    from mloc_prefect.settings import get_settings

    settings = get_settings()
    recipe, gpus = environment(name), len(read_inventory(settings).gpus)
    if recipe.needs_gpu and not gpus:
        print("note: no NVIDIA GPU was found; for vLLM on the CPU run `mloc env create vllm-cpu`", file=sys.stderr)
    python = create(recipe, settings.home, uv=uv, force=force, tell=_tell)
    found = list(faults(name, str(python), packages_of(str(python)), gpus=gpus, driver=driver_cuda()))
    for fault in found:
        fix = f" (fix: {fault.fix})" if fault.fix else ""
        print(f"{'warning' if fault.fatal else 'note'}: {fault.text}{fix}", file=sys.stderr)
    print(f"{name} is {'built' if any(fault.fatal for fault in found) else 'ready'}: {python}")


def list_env() -> None:
    """List the environments that can be built, and their state."""
    from mloc_prefect.execution.environments.catalog import ENVIRONMENTS, directory, marker_of
    from mloc_prefect.settings import get_settings

    settings = get_settings()
    for recipe in ENVIRONMENTS.values():
        marker = marker_of(settings.home, recipe.name)
        print(f"{recipe.name}  {recipe.summary}")
        if recipe.name in settings.python:
            print(f"  MLOC_PYTHON names {settings.python[recipe.name]}")
        elif marker is None:
            print(f"  not built: mloc env create {recipe.name}")
        else:
            state = "ready" if marker.get("digest") == recipe.digest else "out of date: mloc env create " + recipe.name
            print(f"  {state}, built {marker.get('built')}, {directory(settings.home, recipe.name)}")


def _tell(text: str) -> None:
    print(f"mloc: {text}", file=sys.stderr, flush=True)
