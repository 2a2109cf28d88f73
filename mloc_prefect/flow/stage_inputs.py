"""Prepares a stage for its first attempt: resolves references, validates the spec again, makes its directory."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts import atomic
from mloc_prefect.artifacts.layout import RESPONSES, destination_dir, open_task_dir, task_dir
from mloc_prefect.artifacts.manifest import read_manifest
from mloc_prefect.artifacts.spec_rules import refusal
from mloc_prefect.artifacts.transfer.delivery import HttpDestination
from mloc_prefect.artifacts.transfer.store_destination import StoreDestination
from mloc_prefect.errors import ExecutionError
from mloc_prefect.flow.dispatcher import StageJob
from mloc_prefect.plan.resolve import resolve_stage, with_result_level
from mloc_prefect.plan.resources import request_of
from mloc_prefect.prefect_ext.requests import current_api_url
from mloc_prefect.tasks.checks import check_spec
from mloc_prefect.tasks.registry import task_type

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from mloc_prefect.execution.protocol import ExecutionRequest
    from mloc_prefect.flow.options import RunOptions
    from mloc_prefect.plan.workflow_plan import StagePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedStage:
    """A stage that is ready for its attempts.

    Attributes:
        spec: Its `spec` without references.
        upstream: Results that its prompts read, by stage name.
        warnings: One sentence for each reference without a value.
        sha256: Digest of the work, see `work_digest`.
        directory: Its task directory.
        job: Makes the job of one attempt.
        destination: Where else the result goes, or None.
        artifacts: `spec.output.artifacts`.
    """

    spec: dict[str, Any]
    upstream: dict[str, Any]
    warnings: tuple[str, ...]
    sha256: str
    directory: Path
    job: Callable[[ExecutionRequest], StageJob]
    destination: HttpDestination | StoreDestination | None
    artifacts: list[str] = field(default_factory=list)


def prepare(stage: StagePlan, options: RunOptions, task_ids: Mapping[str, str]) -> ResolvedStage:
    """Prepare a stage whose upstream stages are DONE.

    Args:
        stage: The stage.
        options: Options of the run.
        task_ids: Task id of each stage key.

    Raises:
        ExecutionError: A reference has no value, or the spec is not valid once they are filled in; not retryable.
        ArtifactError: Its result cannot be put where it should be.
    """
    outside = _external_ids(stage, options.root, task_ids)
    ids = {**outside, **task_ids}
    names = dict.fromkeys((*stage.upstream, *(r.stage for r in stage.references if r.stage), *outside))
    results = {n: _result_of(n, options.root, ids) for n in names if n in ids}
    known = {n: r for n, r in results.items() if r is not None}
    resolved = resolve_stage(stage, known, ids, env=_allowed_env(options), params=options.params)
    spec = resolved.spec
    kind = task_type(stage.task_type)
    checked = check_spec(kind.model, spec, resolved=True)
    bad = [p for p in checked.problems if p.severity == "error"]
    if bad:
        text = "; ".join(f"{_dotted(('spec', *p.path))}: {p.message}" for p in bad)
        raise ExecutionError(f"invalid once its references are filled in: {text}", retryable=False)
    refused = options.rules.problems(spec, filled=True)
    if refused:
        text, hint = refusal(refused, "refused once its references are filled in")
        raise ExecutionError(text, retryable=False, hint=hint)
    output = spec.get("output") or {}
    destination = output.get("destination") or {}
    elsewhere = HttpDestination.of(destination) or StoreDestination.of(destination)
    if elsewhere is not None:
        elsewhere.check(options.allowed_hosts(current_api_url()))
    task_id = task_ids[stage.key]
    target = destination_dir(options.root, task_id, destination, allow_outside=options.settings.allow_outside_results)
    needs_upstream = (spec.get("data") or {}).get("type") == "graph_template" if _is_map(spec.get("data")) else False
    upstream = known if needs_upstream else {}
    direct = {name: known[name] for name in (*stage.upstream, *outside) if name in known}
    depends = bool(stage.upstream or stage.external)
    document = {key: value for key, value in stage.effective.items() if key != "spec"}
    timeout = getattr(checked.spec, "timeout_sec", None)

    def job(request: ExecutionRequest) -> StageJob:
        return StageJob(
            request=request,
            executor=kind.executor(checked.spec),
            engine_options=dict(kind.engine_options(checked.spec)),
            resources=request_of(kind, spec),
            timeout=timeout,
            stall=options.settings.stall_seconds,
            holder=stage.name,
            priority=stage.priority,
            document=document,
            results=(upstream or direct) if depends else None,
        )

    return ResolvedStage(
        spec=spec,
        upstream=upstream,
        warnings=resolved.warnings,
        sha256=work_digest(stage.task_type, spec, upstream),
        directory=open_task_dir(options.root, task_id, target),
        job=job,
        destination=elsewhere,
        artifacts=[str(a) for a in output.get("artifacts") or []],
    )


def _external_ids(stage: StagePlan, root: Path, own: Mapping[str, str]) -> dict[str, str]:
    """Return the ids of the tasks of other submissions in `dependsOn` by the names that references use."""
    manifests = ((task_id, read_manifest(task_dir(root, task_id))) for task_id in stage.external)
    named = {manifest.short_name: task_id for task_id, manifest in manifests if manifest is not None}
    return {name: task_id for name, task_id in named.items() if name and name not in own}


def _result_of(key: str, root: Path, task_ids: Mapping[str, str]) -> Any:
    try:
        return with_result_level(atomic.read_json(task_dir(root, task_ids[key]) / RESPONSES))
    except FileNotFoundError:
        return None


def _allowed_env(options: RunOptions) -> dict[str, str]:
    names = [n.strip() for n in options.settings.allowed_env.split(",")]
    return {n: os.environ[n] for n in names if n in os.environ}


def work_digest(task_type: str, spec: Mapping[str, Any], upstream: Mapping[str, Any]) -> str:
    """Return what makes two runs of a task the same: its type, its resolved spec, and the results its prompt reads."""
    text = json.dumps([task_type, spec, upstream], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _is_map(value: Any) -> bool:
    return isinstance(value, dict)


def _dotted(path: tuple[str | int, ...]) -> str:
    from mloc_prefect.diagnostics.positions import path_text

    return path_text(path)
