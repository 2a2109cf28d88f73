"""What is looked at before anything is started: hardware, libraries, the results root, tasks of other submissions."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mloc_prefect
from mloc_prefect.artifacts import atomic
from mloc_prefect.artifacts.delivery import AllowedHosts, HttpDestination
from mloc_prefect.artifacts.layout import destination_dir, task_dir
from mloc_prefect.artifacts.manifest import read_manifest
from mloc_prefect.artifacts.mirrors import Mirrors
from mloc_prefect.artifacts.storing import StoreDestination
from mloc_prefect.errors import ArtifactError, MissingExtraError, PlanError
from mloc_prefect.execution.failures import no_executor_text
from mloc_prefect.orchestrate.choice import choose
from mloc_prefect.orchestrate.dispatch import interpreter
from mloc_prefect.worker.inventory import misfit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mloc_prefect.orchestrate.options import RunOptions
    from mloc_prefect.plan.model import StagePlan, WorkflowPlan
    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.tasks.base import ExecutorRef
    from mloc_prefect.worker.inventory import Inventory

_OURS = Path(mloc_prefect.__file__).parents[1]
_EXECUTORS = "mloc_prefect.executors."
_PROBE_SECONDS = 60.0
_PROBE = """
import importlib.util, json, sys
sys.path.append(sys.argv[1])  # where our own package is, as the executor host will have it
def there(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
print(json.dumps([n for n in sys.argv[2:] if not there(n)]))
"""


def check_runnable(
    plan: WorkflowPlan, options: RunOptions, inventory: Inventory | None, *, ignore_resources: bool
) -> None:
    """Return when every stage of `plan` can run; nothing was started.

    Args:
        plan: The plan.
        options: How it will be run; with a watch, tasks of other submissions may still be at work.
        inventory: What this machine has; None: stages run elsewhere, and only what holds everywhere is looked at.
        ignore_resources: Run here even what asks for more than that.

    Raises:
        PlanError: A stage asks for more than this machine has, or for what its engine does not do, names no model, or
            waits for a task that is not done.
        MissingExtraError: An executor or its libraries are not installed; the hint is the exact command.
        ArtifactError: Results cannot be written where they should be, or may not be sent there, or a mirrors file is
            wrong.
    """
    if options.watch is None:
        _check_external(plan.stages, options.root)
    if inventory is not None:
        _check_models(plan.stages, options, inventory)
        if not ignore_resources:
            _check_resources(plan.stages, inventory)
        _check_engines(plan.stages, options, inventory)
        _check_executors(plan.stages, options, inventory)
        _check_mirrors(options.settings)
    _check_results(plan.stages, options)


def _check_resources(stages: Iterable[StagePlan], inventory: Inventory) -> None:
    reasons = [f"stage {s.key!r} {why}" for s in stages if (why := misfit(s.resources, inventory))]
    if reasons:
        raise PlanError("; ".join(reasons), hint="--ignore-resources runs it here anyway (on the CPU if need be)")


def _check_external(stages: Iterable[StagePlan], root: Path) -> None:
    missing = [f"{i!r} (of stage {s.key!r})" for s in stages for i in s.external if not _is_done(root, i)]
    if missing:
        raise PlanError(
            f"depends on tasks that are not done below {root}: {', '.join(missing)}",
            hint="run them first, or name a stage of this spec in dependsOn",
        )


def _is_done(root: Path, task_id: str) -> bool:
    manifest = read_manifest(task_dir(root, task_id))
    return manifest is not None and manifest.status == "DONE"


def _check_models(stages: Iterable[StagePlan], options: RunOptions, inventory: Inventory) -> None:
    """Refuse stages whose model neither the spec nor the environment names. [protocol 4.2]."""
    wanted: dict[str, list[str]] = {}
    for stage in stages:
        variable = choose(stage.executor, stage.resources, options.settings, inventory).executor.model_variable
        if variable and not stage.model and not os.environ.get(variable):
            wanted.setdefault(variable, []).append(stage.key)
    if wanted:
        text = "; ".join(
            f"{_stages(keys)}: spec.model.source.identifier (or {variable}) is required."
            for variable, keys in wanted.items()
        )
        raise PlanError(text, hint=f"name a model in the spec, or set {next(iter(wanted))}")


def _check_engines(stages: Iterable[StagePlan], options: RunOptions, inventory: Inventory) -> None:
    """Refuse stages with fields for which the engine that runs here would refuse them."""
    texts, hints = [], dict[str, None]()
    for stage in stages:
        choice = choose(stage.executor, stage.resources, options.settings, inventory)
        fields = choice.executor.refuses
        if fields:
            engine = f"which {choice.executor.environment} runs here ({choice.why})"
            read = f"{' and '.join(fields)} {'is' if len(fields) == 1 else 'are'} read by vLLM only"
            texts.append(f"stage {stage.key!r}, {engine}, cannot run: {read}")
            hints[_way_to_vllm(stage.executor, inventory)] = None
    if texts:
        raise PlanError("; ".join(texts), hint="; ".join(hints))


def _way_to_vllm(executor: ExecutorRef, inventory: Inventory) -> str:
    if not executor.preferred:
        return "remove what keeps vLLM away (enforce_cpu, or the task type), or this field"
    if inventory.gpus:
        return "mloc env create vllm, and ask for a GPU in spec.resources.hardware.gpu"
    return "mloc env create vllm-cpu"


def _check_executors(stages: Iterable[StagePlan], options: RunOptions, inventory: Inventory) -> None:
    found = lacks(stages, options.settings, inventory)
    missing: dict[str, list[str]] = {}
    for key, lack in found.items():
        missing.setdefault(lack.text, []).append(key)
    if missing:
        text = "; ".join(f"{_stages(keys)} cannot run: {why}" for why, keys in missing.items())
        fixes = dict.fromkeys(lack.fix for lack in found.values() if lack.fix)
        raise MissingExtraError(text, hint="; ".join(fixes) or None)


@dataclass(frozen=True, slots=True)
class Lack:
    """What a stage lacks to run here.

    Attributes:
        text: In words.
        fix: The command that brings it, or None.
    """

    text: str
    fix: str | None


def lacks(stages: Iterable[StagePlan], settings: MlocSettings, inventory: Inventory) -> dict[str, Lack]:
    """Return what the stages lack to run on this machine, by their keys; nothing for those that can.

    Raises:
        MissingExtraError: An interpreter does not work.
    """
    known: dict[tuple[ExecutorRef, str], Lack | None] = {}
    found: dict[str, Lack] = {}
    for stage in stages:
        executor = choose(stage.executor, stage.resources, settings, inventory).executor
        place = (executor, interpreter(executor, settings))
        if place not in known:
            known[place] = _lack(*place)
        if (lack := known[place]) is not None:
            found[stage.key] = lack
    return found


def _lack(executor: ExecutorRef, python: str) -> Lack | None:
    absent = missing_modules(executor, python)
    if not absent:
        return None
    unwritten = executor.path.partition(":")[0] in absent  # then no command brings it
    fix = install_command(executor.extra, python) if executor.extra and not unwritten else None
    return Lack(lack_text(executor, python, absent), fix)


def is_unwritten(executor: ExecutorRef) -> bool:
    """Return whether this version has no code for such tasks, so that no worker of ours can ever run one."""
    module = executor.path.partition(":")[0]
    return module.startswith(_EXECUTORS) and not _there(module)


def missing_modules(executor: ExecutorRef, python: str) -> list[str]:
    """Return the modules that the executor needs and its interpreter does not find; nothing is imported.

    Raises:
        MissingExtraError: The interpreter does not work.
    """
    names = [executor.path.partition(":")[0], *executor.imports]
    if python == sys.executable:
        return [n for n in names if not _there(n)]
    try:
        done = subprocess.run(
            [python, "-c", _PROBE, str(_OURS), *names],
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=True,
        )
        answer: Any = json.loads(done.stdout.strip().rsplit("\n", 1)[-1])
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise MissingExtraError(
            f"the interpreter {python} of environment {executor.environment!r} does not work: {error}",
            hint="correct MLOC_PYTHON",
        ) from error
    return [str(n) for n in answer]


def _there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def lack_text(executor: ExecutorRef, python: str, absent: list[str]) -> str:
    """Return in words what an executor lacks in its interpreter."""
    module = executor.path.partition(":")[0]
    if module in absent and module.startswith(_EXECUTORS):
        needs = f"; it will need mloc-prefect[{executor.extra}]" if executor.extra else ""
        return f"{no_executor_text()}{needs}"
    where = "" if python == sys.executable else f" in {python}"
    return f"{', '.join(absent)} not installed{where}"


def install_command(extra: str, python: str) -> str:
    """Return the command that brings an extra of this package into an interpreter."""
    pip = "pip" if python == sys.executable else f"{python} -m pip"
    return f"{pip} install 'mloc-prefect[{extra}]'"


def _check_mirrors(settings: MlocSettings) -> None:
    """Refuse to start with mirrors files that nobody can read; executors read both."""
    Mirrors.load(settings.mirrors_file, *(file for file in [settings.home / "mirrors.yaml"] if file.is_file()))


def _stages(keys: list[str]) -> str:
    return f"stage{'s' if len(keys) > 1 else ''} {', '.join(map(repr, keys))}"


def _check_results(stages: Iterable[StagePlan], options: RunOptions) -> None:
    root = options.root
    try:
        atomic.write_bytes(root / ".writable", b"")
    except ArtifactError as error:
        raise ArtifactError(
            f"the results directory {root} is not writable: {error.message}",
            hint="use --results-dir, or set RESULTS_DIR",
        ) from error
    (root / ".writable").unlink(missing_ok=True)
    for stage in stages:
        destination = _destination(stage)
        if "${" not in str(destination.get("path")):
            destination_dir(root, "task", destination, allow_outside=options.settings.allow_outside_results)
        if not any("${" in str(destination.get(name)) for name in ("type", "path", "url", "method", "headers")):
            _check_delivery(stage, destination, options)


def _check_delivery(stage: StagePlan, destination: dict[str, Any], options: RunOptions) -> None:
    allowed = AllowedHosts.of(options.settings, loopback=options.loopback)
    try:
        elsewhere = HttpDestination.of(destination) or StoreDestination.of(destination)
        if elsewhere is not None:
            elsewhere.check(allowed)
    except ArtifactError as error:
        raise ArtifactError(f"result of stage {stage.key!r}: {error.message}", hint=error.hint) from None


def _destination(stage: StagePlan) -> dict[str, Any]:
    spec = stage.effective.get("spec")
    output = spec.get("output") if isinstance(spec, dict) else None
    destination = output.get("destination") if isinstance(output, dict) else None
    return destination if isinstance(destination, dict) else {}
