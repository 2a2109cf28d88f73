"""Checks before a run: hardware, libraries, the results root, tasks of other submissions."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts import atomic
from mloc_prefect.artifacts.layout import destination_dir, task_dir
from mloc_prefect.artifacts.manifest import read_manifest
from mloc_prefect.artifacts.mirrors import Mirrors
from mloc_prefect.artifacts.spec_rules import refusal
from mloc_prefect.artifacts.transfer.delivery import HttpDestination
from mloc_prefect.artifacts.transfer.store_destination import StoreDestination
from mloc_prefect.errors import ArtifactError, MissingExtraError, PlanError
from mloc_prefect.execution.failures import no_executor_text
from mloc_prefect.flow.dispatcher import interpreter
from mloc_prefect.flow.engine_choice import choose_engines
from mloc_prefect.hardware.inventory import misfit
from mloc_prefect.tasks.registry import task_type
from mloc_prefect.trust.agent_configurations import AgentSite, check_agent
from mloc_prefect.version import PACKAGE_DIR

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mloc_prefect.flow.engine_choice import ExecutorChoice
    from mloc_prefect.flow.options import RunOptions
    from mloc_prefect.hardware.inventory import Inventory
    from mloc_prefect.plan.workflow_plan import StagePlan, WorkflowPlan
    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.tasks.base import ExecutorRef

_PACKAGE_PARENT = PACKAGE_DIR.parent
_EXECUTORS = "mloc_prefect.executors."
_PROBE_SECONDS = 60.0
_SHOWN_STAGES = 8  # stages with a refused field that one message names
_PROBE = """
import importlib.machinery, importlib.util, json, sys
sys.path.append(sys.argv[1])  # the directory of our own package, as executor hosts have it
def found(name):
    top, *parts = name.split(".")
    spec = importlib.util.find_spec(top)
    for part in parts:  # find_spec would import the packages above it
        if spec is None:
            return False
        top = f"{top}.{part}"
        spec = importlib.machinery.PathFinder.find_spec(top, spec.submodule_search_locations or [])
    return spec is not None
print(json.dumps([n for n in sys.argv[2:] if not found(n)]))
"""


def check_runnable(
    plan: WorkflowPlan, options: RunOptions, inventory: Inventory | None, *, ignore_resources: bool
) -> None:
    """Return if every stage of `plan` can run; starts nothing.

    Args:
        plan: The plan.
        options: How it will be run; with a watch, tasks of other submissions may still be running.
        inventory: What this machine has; None: stages run elsewhere, and only what holds everywhere is checked.
        ignore_resources: Accept stages that ask for more than that.

    Raises:
        PlanError: A stage reads or runs what the settings do not allow, asks for more than this machine has, or for
            what its engine does not do, names no model, or waits for a task that is not done.
        MissingExtraError: An executor or its libraries are not installed; the hint is the exact command.
        ArtifactError: Results cannot be written where they should be, or may not be sent there, or a mirrors file is
            wrong.
    """
    _check_rules(plan.stages, options)
    if options.watch is None:
        _check_external(plan.stages, options.root)
    if inventory is not None:
        choices = choose_engines(plan.stages, options.settings, inventory)
        _check_models(plan.stages, choices)
        if not ignore_resources:
            _check_resources(plan.stages, inventory)
        _check_engines(plan.stages, choices, inventory)
        _check_agents(plan.stages, options.settings)
        _check_executors(choices, options.settings)
        _check_mirrors(options.settings)
    _check_results(plan.stages, options)


def _check_rules(stages: Iterable[StagePlan], options: RunOptions) -> None:
    """Refuse stages that read or run what the settings do not allow."""
    rules, texts, hints = options.rules, list[str](), dict[str, None]()
    for stage in stages:
        spec = stage.effective.get("spec")
        problems = rules.problems(spec) if isinstance(spec, dict) else []
        if problems:
            text, hint = refusal(problems, f"stage {stage.key!r}")
            texts.append(text)
            hints |= dict.fromkeys([hint] if hint else [])
    if texts:
        raise PlanError("; ".join(texts[:_SHOWN_STAGES]), hint="; ".join(hints) or None)


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


def _check_models(stages: Iterable[StagePlan], choices: Mapping[str, ExecutorChoice]) -> None:
    """Refuse stages whose model neither the spec nor the environment names. [protocol 4.2]."""
    wanted: dict[str, list[str]] = {}
    for stage in stages:
        variable = choices[stage.key].executor.model_variable
        if variable and not stage.model and not os.environ.get(variable):
            wanted.setdefault(variable, []).append(stage.key)
    if wanted:
        text = "; ".join(
            f"{_stages(keys)}: spec.model.source.identifier (or {variable}) is required."
            for variable, keys in wanted.items()
        )
        raise PlanError(text, hint=f"name a model in the spec, or set {next(iter(wanted))}")


def _check_engines(stages: Iterable[StagePlan], choices: Mapping[str, ExecutorChoice], inventory: Inventory) -> None:
    """Refuse stages with fields that their engine on this machine does not read."""
    texts, hints = [], dict[str, None]()
    for stage in stages:
        choice = choices[stage.key]
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


def _check_agents(stages: Iterable[StagePlan], settings: MlocSettings) -> None:
    """Refuse stages whose configuration of agents is not here, or does not allow what they ask for."""
    site = AgentSite.of(settings)
    for stage in stages:
        spec = stage.effective.get("spec")
        if not isinstance(spec, dict) or not task_type(stage.task_type).agent or "${" in json.dumps(spec, default=str):
            continue  # what an earlier stage fills in is judged where the attempt runs
        try:
            check_agent(spec, site)
        except PlanError as error:
            raise PlanError(f"stage {stage.key!r}: {error.message}", hint=error.hint) from None


def _check_executors(choices: Mapping[str, ExecutorChoice], settings: MlocSettings) -> None:
    found = missing_needs(choices, settings)
    missing: dict[str, list[str]] = {}
    for key, lack in found.items():
        missing.setdefault(lack.text, []).append(key)
    if missing:
        text = "; ".join(f"{_stages(keys)} cannot run: {why}" for why, keys in missing.items())
        fixes = dict.fromkeys(lack.fix for lack in found.values() if lack.fix)
        raise MissingExtraError(text, hint="; ".join(fixes) or None)


@dataclass(frozen=True, slots=True)
class MissingNeed:
    """What a stage lacks to run on this machine.

    Attributes:
        text: One line for people.
        fix: The command that installs it, or None.
    """

    text: str
    fix: str | None


def missing_needs(choices: Mapping[str, ExecutorChoice], settings: MlocSettings) -> dict[str, MissingNeed]:
    """Return what stages lack to run on this machine, by stage key; stages that lack nothing are left out.

    Args:
        choices: The executor of each stage on this machine, by stage key.
        settings: Where the interpreters of executors are.

    Raises:
        MissingExtraError: An interpreter does not work.
    """
    known: dict[tuple[ExecutorRef, str], MissingNeed | None] = {}
    found: dict[str, MissingNeed] = {}
    for key, choice in choices.items():
        pair = (choice.executor, interpreter(choice.executor, settings))
        if pair not in known:
            known[pair] = _missing_need(*pair)
        if (need := known[pair]) is not None:
            found[key] = need
    return found


def _missing_need(executor: ExecutorRef, python: str) -> MissingNeed | None:
    absent = missing_modules(executor, python)
    if not absent:
        return None
    unwritten = executor.path.partition(":")[0] in absent  # then no command installs it
    fix = install_command(executor.extra, python) if executor.extra and not unwritten else None
    return MissingNeed(lack_text(executor, python, absent), fix)


def is_unwritten(executor: ExecutorRef) -> bool:
    """Return whether this version has no code for the executor, so that no worker of ours can run it."""
    module = executor.path.partition(":")[0]
    return module.startswith(_EXECUTORS) and not _is_ours(module)


def missing_modules(executor: ExecutorRef, python: str) -> list[str]:
    """Return the modules that the executor needs and its interpreter does not find; imports none of them.

    Raises:
        MissingExtraError: The interpreter does not work.
    """
    names = [executor.path.partition(":")[0], *executor.imports]
    if python == sys.executable:
        return [n for n in names if not _there(n)]
    try:
        done = subprocess.run(
            [python, "-c", _PROBE, str(_PACKAGE_PARENT), *names],
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


@cache
def _is_ours(module: str) -> bool:
    """Return whether a module of this package is there; that does not change while a process runs."""
    return _there(module)


def _there(name: str) -> bool:
    """Return whether a module is there; the packages above it are not imported, as `importlib.util.find_spec` would."""
    top, *parts = name.split(".")
    spec = importlib.util.find_spec(top)
    for part in parts:
        if spec is None:
            return False
        top = f"{top}.{part}"
        spec = PathFinder.find_spec(top, spec.submodule_search_locations or [])
    return spec is not None


def lack_text(executor: ExecutorRef, python: str, absent: list[str]) -> str:
    """Return one line about what an executor lacks in its interpreter."""
    module = executor.path.partition(":")[0]
    if module in absent and module.startswith(_EXECUTORS):
        needs = f"; it will need mloc-prefect[{executor.extra}]" if executor.extra else ""
        return f"{no_executor_text()}{needs}"
    where = "" if python == sys.executable else f" in {python}"
    return f"{', '.join(absent)} not installed{where}"


def install_command(extra: str, python: str) -> str:
    """Return the command that installs an extra of this package for an interpreter."""
    pip = "pip" if python == sys.executable else f"{python} -m pip"
    return f"{pip} install 'mloc-prefect[{extra}]'"


def _check_mirrors(settings: MlocSettings) -> None:
    """Refuse to start with mirrors files that cannot be read; executors read both."""
    Mirrors.load(settings.mirrors_file, *(file for file in [settings.home / "mirrors.yaml"] if file.is_file()))


def _stages(keys: list[str]) -> str:
    return f"stage{'s' if len(keys) > 1 else ''} {', '.join(map(repr, keys))}"


def _check_results(stages: Iterable[StagePlan], options: RunOptions) -> None:
    root = options.root
    try:
        atomic.write_bytes(root / ".writable", b"")
    except ArtifactError as error:
        cause = error.__cause__
        why = cause.strerror if isinstance(cause, OSError) and cause.strerror else error.message
        raise ArtifactError(
            f"the results directory {root} is not writable: {why}",
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
    allowed = options.allowed_hosts(os.environ.get("PREFECT_API_URL"))
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
