"""Reads flow runs of ours, and the events about them that Prefect has kept, from Prefect's API."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from mloc_prefect.bridge.event_sources import RunEvent, parse_all
from mloc_prefect.prefect_ext.requests import ask
from mloc_prefect.prefect_ext.run_facts import ATTEMPT_LABEL, STAGE_EVENT_PREFIX
from mloc_prefect.prefect_ext.state_reasons import reason_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from prefect.client.orchestration import PrefectClient

    from mloc_prefect.prefect_ext.state_reasons import StateCode

FINAL = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
LIVE = ("SCHEDULED", "PENDING", "RUNNING", "CANCELLING", "PAUSED")
_PAGE = 200
_SUBMISSIONS_AT_ONCE = 50
_IDS_AT_ONCE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTags:
    """The tags of a run of ours, parsed.

    Attributes:
        task_id: Task of a stage run; None for others.
        submission_id: Submission that it belongs to, or None.
        task_type: `spec.taskType`.
        stage: Key of the stage; None for a run without our stage runner, of which only the states are known.
        attempt_of: Task of which the run is one attempt on the pool, else None; its stage reports about it.
    """

    task_id: str | None = None
    submission_id: str | None = None
    task_type: str = ""
    stage: str | None = None
    attempt_of: str | None = None

    @property
    def is_workflow_run(self) -> bool:
        """Whether a run of ours with such tags runs a whole workflow."""
        return self.task_id is None and self.attempt_of is None

    @classmethod
    def of(cls, tags: Collection[str]) -> RunTags:
        """Parse `tags`."""
        found = dict(t.split(":", 1) for t in tags if t.startswith("mloc-") and ":" in t)
        return cls(
            task_id=found.get("mloc-task"),
            submission_id=found.get("mloc-submission"),
            task_type=found.get("mloc-type", ""),
            stage=found.get("mloc-stage"),
            attempt_of=found.get("mloc-attempt"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A flow run as the API shows it.

    Attributes:
        id: Its id.
        name: Its name.
        tags: Its tags, parsed.
        labels: Its labels.
        parameters: Its parameters.
        type: Type of its state, upper case.
        state: Name of its state.
        message: Message of its state.
        code: Why it has its state, where that is one of our codes.
        last_attempt: Attempt that its state is about, from 1; 0 when it names none.
        since: When it entered this state, seconds since the epoch.
        created: When it was created, seconds since the epoch.
        run_count: How often it was started.
    """

    id: str
    name: str = ""
    tags: RunTags = field(default_factory=RunTags)
    labels: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    type: str = "PENDING"
    state: str = ""
    message: str = ""
    code: StateCode | None = None
    last_attempt: int = 0
    since: float = 0.0
    created: float = 0.0
    run_count: int = 0

    @property
    def final(self) -> bool:
        """Whether it has ended."""
        return self.type in FINAL

    @property
    def submission_id(self) -> str:
        """The submission; a workflow run that was not submitted is its own."""
        return self.tags.submission_id or str(self.parameters.get("submission_id") or self.id)

    @property
    def attempt(self) -> int:
        """The attempt in the labels of a stage run, or the later one in its state, from 1."""
        text = str(self.labels.get(ATTEMPT_LABEL, 1))
        return max(int(text) if text.isdigit() else 1, self.last_attempt)


class RunReader(Protocol):
    """Reads flow runs; every method raises `httpx.HTTPError` when the API does not answer."""

    async def get(self, run_ids: Collection[str]) -> Mapping[str, RunView]:
        """Return the runs that exist, by id."""
        ...

    async def of_submissions(self, submission_ids: Collection[str]) -> Sequence[RunView]:
        """Return workflow and stage runs of submissions, oldest first."""
        ...

    async def find_by_ids(self, submission_ids: Collection[str], run_ids: Collection[str] = ()) -> Sequence[RunView]:
        """Return workflow runs of submissions, their subflow runs, and the runs `run_ids`.

        A search by ids costs the same however many runs exist; a stage run that was started outside of a workflow run
        is found only by its own id.
        """
        ...

    async def unfinished(self) -> Sequence[RunView]:
        """Return all unfinished runs of ours, oldest first."""
        ...

    async def workflow_runs_since(self, ts: float) -> Sequence[RunView]:
        """Return all workflow runs of ours with an expected start after `ts`, oldest first."""
        ...

    async def kept_events(self, run_ids: Collection[str]) -> Sequence[RunEvent]:
        """Return the events of our stage runner about runs that Prefect has stored (some seconds late), in order."""
        ...


class PrefectRuns:
    """Reads from Prefect's API.

    Args:
        client: Open client.
    """

    def __init__(self, client: PrefectClient) -> None:
        self._client = client

    async def get(self, run_ids: Collection[str]) -> Mapping[str, RunView]:
        """See `RunReader`."""
        if not run_ids:
            return {}
        if len(run_ids) == 1:
            row = await ask(self._client, "GET", f"/flow_runs/{next(iter(run_ids))}")
            return {} if row is None else {row["id"]: view(row)}
        found = await self._filter({"id": {"any_": list(run_ids)}})
        return {run.id: run for run in found}

    async def of_submissions(self, submission_ids: Collection[str]) -> Sequence[RunView]:
        """See `RunReader`."""
        names, found = list(submission_ids), []
        for at in range(0, len(names), _SUBMISSIONS_AT_ONCE):
            tags = [f"mloc-submission:{name}" for name in names[at : at + _SUBMISSIONS_AT_ONCE]]
            found += await self._filter({"tags": {"any_": tags}})
        return found

    async def find_by_ids(self, submission_ids: Collection[str], run_ids: Collection[str] = ()) -> Sequence[RunView]:
        """See `RunReader`. The idempotency key of a workflow run is its submission; else its id is."""
        names = list(submission_ids)
        ids = [name for name in (*names, *run_ids) if _is_id(name)]
        found: dict[str, RunView] = {}
        for at in range(0, max(len(names), len(ids)), _IDS_AT_ONCE):
            some = {
                "id": {"any_": ids[at : at + _IDS_AT_ONCE]},
                "idempotency_key": {"any_": names[at : at + _IDS_AT_ONCE]},
            }
            found |= {run.id: run for run in await self._filter({"operator": "or_", **some})}
        workflows = [run.id for run in found.values() if run.tags.is_workflow_run]
        for at in range(0, len(workflows), _IDS_AT_ONCE):
            below = await self._filter({"parent_flow_run_id": {"any_": workflows[at : at + _IDS_AT_ONCE]}})
            found |= {run.id: run for run in below}
        return list(found.values())

    async def unfinished(self) -> Sequence[RunView]:
        """See `RunReader`."""
        return await self._filter({"tags": {"all_": ["mloc"]}, "state": {"type": {"any_": list(LIVE)}}})

    async def workflow_runs_since(self, ts: float) -> Sequence[RunView]:
        """See `RunReader`."""
        after = datetime.fromtimestamp(ts, UTC).isoformat()
        found = await self._filter({"tags": {"all_": ["mloc"]}, "expected_start_time": {"after_": after}})
        return [run for run in found if run.tags.is_workflow_run]

    async def kept_events(self, run_ids: Collection[str]) -> Sequence[RunEvent]:
        """See `RunReader`."""
        ids, found = list(run_ids), []
        for at in range(0, len(ids), _SUBMISSIONS_AT_ONCE):
            resources = [f"prefect.flow-run.{i}" for i in ids[at : at + _SUBMISSIONS_AT_ONCE]]
            body: Any = {
                "filter": {"event": {"prefix": [STAGE_EVENT_PREFIX]}, "resource": {"id": resources}, "order": "ASC"},
                "limit": 50,
            }
            page = await ask(self._client, "POST", "/events/filter", body)
            while page is not None:
                found += page["events"]
                following = page.get("next_page")
                page = await ask(self._client, "GET", _path(following)) if following else None
        return sorted(parse_all(found), key=lambda e: e.at)

    async def _filter(self, flow_runs: dict[str, Any]) -> list[RunView]:
        found: list[RunView] = []
        while True:
            body = {"flow_runs": flow_runs, "limit": _PAGE, "offset": len(found), "sort": "EXPECTED_START_TIME_ASC"}
            rows = await ask(self._client, "POST", "/flow_runs/filter", body)
            found += [view(row) for row in rows or []]
            if not rows or len(rows) < _PAGE:
                return found


def view(row: Mapping[str, Any]) -> RunView:
    """Parse a flow run in the JSON form of the API."""
    state = row.get("state") or {}
    reason = reason_of(state)
    return RunView(
        id=str(row["id"]),
        name=str(row.get("name") or ""),
        tags=RunTags.of(row.get("tags") or ()),
        labels=row.get("labels") or {},
        parameters=row.get("parameters") or {},
        type=str(state.get("type") or "PENDING"),
        state=str(state.get("name") or ""),
        message=str(state.get("message") or ""),
        code=reason.code if reason else None,
        last_attempt=reason.attempt if reason else 0,
        since=seconds(state.get("timestamp")),
        created=seconds(row.get("created")),
        run_count=int(row.get("run_count") or 0),
    )


def seconds(text: str | None) -> float:
    """Return a time in ISO 8601 as seconds since the epoch; 0 for None."""
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def _is_id(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _path(url: str) -> str:
    return url[url.index("/events/filter") :]
