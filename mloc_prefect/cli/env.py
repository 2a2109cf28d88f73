"""`mloc env`: Python environments of executors that cannot live beside Prefect."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mloc_prefect.cli.boundary import examples

CREATE_EXAMPLES = examples("mloc env create vllm-cpu", "mloc env create train --uv")
LIST_EXAMPLES = examples("mloc env list")


def create_env(
    name: Annotated[str, typer.Argument(metavar="NAME", help="vllm, vllm-cpu or train.")],
    *,
    uv: Annotated[bool, typer.Option("--uv", help="Install with uv; pip's package sources are handed over.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Build it anew, even if it is up to date.")] = False,
) -> None:
    """Build an executor environment from pinned versions; one that is up to date is kept."""
    from mloc_prefect.execution.envbuild import create
    from mloc_prefect.execution.envcheck import faults, packages_of
    from mloc_prefect.execution.environments import environment
    from mloc_prefect.settings import get_settings
    from mloc_prefect.worker.inventory import read_inventory

    settings = get_settings()
    recipe, gpus = environment(name), len(read_inventory(settings).gpus)
    if recipe.needs_gpu and not gpus:
        print("note: this machine shows no NVIDIA GPU; vLLM runs here from `mloc env create vllm-cpu`", file=sys.stderr)
    python = create(recipe, settings.home, uv=uv, force=force, tell=_tell)
    for fault in faults(name, str(python), packages_of(str(python)), gpus=gpus):
        fix = f" (fix: {fault.fix})" if fault.fix else ""
        print(f"{'warning' if fault.fatal else 'note'}: {fault.text}{fix}", file=sys.stderr)
    print(f"{name} is ready: {python}")


def list_env() -> None:
    """List the environments that can be built, and whether they are."""
    from mloc_prefect.execution.environments import ENVIRONMENTS, directory, marker_of
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
