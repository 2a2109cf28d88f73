"""Shows plan, result and progress of a run as artifacts in Prefect's UI."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.exceptions import PrefectException

from mloc_prefect.execution.host.progress_meter import ProgressMeter, phase_text
from mloc_prefect.plan.resources import describe
from mloc_prefect.prefect_ext.requests import storable
from mloc_prefect.prefect_ext.waiting_requests import requests_fail
from mloc_prefect.tasks.chat_messages import shown_prompt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient

    from mloc_prefect.execution.protocol import ExecutionEvent
    from mloc_prefect.flow.outcome import StageOutcome, WorkflowOutcome
    from mloc_prefect.plan.workflow_plan import WorkflowPlan

_log = logging.getLogger(__name__)
SHOW_ERRORS = (httpx.HTTPError, PrefectException)
"""Errors of a display: no answer, a refusal, or a run that was deleted."""

PLAN_KEY, RESULT_KEY = "mloc-plan", "mloc-result"
PROGRESS_AFTER = 2.0  # seconds: shorter stages get no progress artifact
PROGRESS_EVERY, PROGRESS_SELDOM = 2.0, 10.0  # seconds between its updates: the longer it takes, the fewer
_FRESH = 0.2  # share of the elapsed time that the artifact may lag; each update costs the server 30 ms of a core
_SAMPLES = 3
_SAMPLE_LENGTH = 300
_READABLE = 4 << 20  # bytes: larger results are not opened for samples


async def publish(client: PrefectClient, flow_run_id: UUID, key: str, markdown: str, description: str) -> None:
    """Create a markdown artifact on a run; a failure is logged, as a display must not fail the run."""
    text = storable(markdown)  # it shows what models wrote
    create = ArtifactCreate(key=key, type="markdown", description=description, data=text, flow_run_id=flow_run_id)
    try:
        with requests_fail():
            await client.create_artifact(create)
    except SHOW_ERRORS as error:
        _log.warning("artifact %s could not be made: %s", key, error)


def plan_markdown(plan: WorkflowPlan, task_ids: Mapping[str, str]) -> str:
    """Return the plan as a table, without any part of the documents, which may hold secrets."""
    rows = [
        (
            s.key,
            s.task_type,
            s.model or "",
            ", ".join(s.upstream) or "-",
            describe(s.resources),
            f"`{task_ids.get(s.key, '')}`",
        )
        for s in plan.stages
    ]
    lines = [f"# {plan.name}", "", f"{len(plan.stages)} stages ({plan.kind}), from `{plan.file}`", ""]
    lines += table(("stage", "task type", "model", "after", "resources", "task id"), rows)
    notes = [f"* {s.key}: {note}" for s in plan.stages for note in s.notes]
    warnings = [f"* {w.code}: {w.message}" for w in plan.warnings]
    for title, found in (("Notes", notes), ("Warnings", warnings)):
        lines += ["", f"## {title}", "", *found] if found else []
    return "\n".join(lines)


def result_markdown(outcome: WorkflowOutcome, seconds: Mapping[str, float]) -> str:
    """Return the end of a run: a table, then sample outputs of each finished stage.

    Args:
        outcome: The end of the run.
        seconds: Wall time of each stage key.
    """
    rows = [
        (
            t.key,
            t.status + (" (reused)" if t.reused else ""),
            f"{seconds.get(t.key, 0.0):.1f} s",
            _engine(t.summary),
            _usage(t.summary),
            f"`{t.result_path}`" if t.result_path else (t.error or "").split("\n", 1)[0],
        )
        for t in outcome.tasks
    ]
    lines = [f"# {outcome.name}: {'done' if outcome.ok else 'failed'}", "", outcome.message, ""]
    lines += table(("stage", "status", "time", "engine", "usage", "result or error"), rows)
    for task in outcome.tasks:
        samples = list(_samples(task))
        if samples:
            lines += ["", f"## Samples of {task.key}", "", *samples]
    return "\n".join(lines)


class ProgressArtifact:
    """The progress artifact of one stage: made after `PROGRESS_AFTER` seconds, then updated when something changed.

    Use as an async context manager around the stage; `event` takes events of the executor.
    """

    def __init__(self, client: PrefectClient, flow_run_id: UUID, name: str) -> None:
        self._client, self._flow_run_id, self._name = client, flow_run_id, name
        self._meter, self._text = ProgressMeter(), ""
        self._id: UUID | None = None
        self._shown: tuple[float, str] | None = None
        self._task: asyncio.Task[None] | None = None
        self._start = time.monotonic()

    async def __aenter__(self) -> ProgressArtifact:
        self._task = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        if self._meter.total:
            self._text = ""
        if self._id is not None:
            await self._show()

    def event(self, event: ExecutionEvent) -> None:
        """Take one event."""
        if event.kind == "progress":
            self._meter.take(event.data, time.monotonic())
            self._text = ""
        elif event.kind == "phase":
            self._text = phase_text(event.data)
        elif event.kind == "waiting":
            self._text = f"waiting: {event.data.get('reason') or ''}"
        elif event.kind == "placed":
            self._text = f"at {event.data.get('worker') or 'a worker'}"

    async def _keep(self) -> None:
        await asyncio.sleep(PROGRESS_AFTER)
        while True:
            # A started update is always finished: the run must not end during a request.
            await asyncio.shield(asyncio.ensure_future(self._show()))
            behind = _FRESH * (time.monotonic() - self._start)
            await asyncio.sleep(max(PROGRESS_EVERY, min(PROGRESS_SELDOM, behind)))

    async def _show(self) -> None:
        meter = self._meter
        percent = 100.0 * meter.done / meter.total if meter.total else 0.0
        counts = meter.text(time.monotonic()) if meter.total else "running"
        now = (percent, f"{self._name}: {self._text or counts}")
        if now == self._shown:
            return
        self._shown = now
        try:
            with requests_fail():
                await self._send(percent, storable(now[1]))
        except SHOW_ERRORS as error:  # a display must not fail the stage
            _log.warning("progress of %s could not be shown: %s", self._name, error)

    async def _send(self, percent: float, text: str) -> None:
        if self._id is None:
            create = ArtifactCreate(type="progress", data=percent, description=text, flow_run_id=self._flow_run_id)
            self._id = (await self._client.create_artifact(create)).id
        else:
            await self._client.update_artifact(self._id, ArtifactUpdate(data=percent, description=text))


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return the lines of a markdown table."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(_cell(c) for c in row) + " |" for row in rows]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _engine(summary: Mapping[str, Any]) -> str:
    name, why = str(summary.get("engine") or ""), summary.get("why")
    return f"{name} ({why})" if why else name


def _usage(summary: Mapping[str, Any]) -> str:
    usage = summary.get("usage")
    if not isinstance(usage, dict):
        return f"{summary['rows']} rows" if summary.get("rows") else ""
    return ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in usage.items() if isinstance(v, int | float))


def _samples(task: StageOutcome) -> Iterable[str]:
    path = Path(task.result_path) if task.ok and task.result_path else None
    if path is None or not path.is_file() or path.stat().st_size > _READABLE:
        return
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):  # samples are only shown: an unreadable result is no error here
        return
    inner = content.get("result", content) if isinstance(content, dict) else {}  # in an envelope, or without
    whole = inner.get("merged", inner) if isinstance(inner, dict) else {}  # of a divided task, or not
    items = whole.get("items") if isinstance(whole, dict) else None
    for item in (items if isinstance(items, list) else [])[:_SAMPLES]:
        if isinstance(item, dict) and isinstance(item.get("output"), str):
            prompt = shown_prompt(item.get("prompt"))
            asked = "" if prompt is None else f"{_cell(_short(prompt))}\n\n"
            yield asked + "> " + _short(item["output"]).replace("\n", "\n> ") + "\n"


def _short(text: str) -> str:
    return (text if len(text) <= _SAMPLE_LENGTH else text[: _SAMPLE_LENGTH - 1] + "…").strip()
