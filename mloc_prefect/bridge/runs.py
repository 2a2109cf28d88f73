"""What the bridge reads of Prefect's API: flow runs of ours, and the events about them that Prefect has kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from mloc_prefect.bridge.events import RunEvent, parse_all
from mloc_prefect.orchestrate.api import ask
from mloc_prefect.orchestrate.tell import ATTEMPT_LABEL, PREFIX

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from prefect.client.orchestration import PrefectClient

FINAL = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
LIVE = ("SCHEDULED", "PENDING", "RUNNING", "CANCELLING", "PAUSED")
_PAGE = 200
_NAMED = 50  # submissions asked for at once
_AT_HAND = 200  # ids asked for at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """What the tags of a run of ours say.

    Attributes:
        task_id: Task of a stage run; None for others.
        submission_id: What it was submitted with, or None.
        task_type: `spec.taskType`.
        stage: Key of the stage; None for a run that our stage runner does not attend: then its states say all.
        attempt_of: Task of which the run is one attempt on the pool, else None; what is told of it, its stage tells.
    """

    task_id: str | None = None
    submission_id: str | None = None
    task_type: str = ""
    stage: str | None = None
    attempt_of: str | None = None

    @property
    def root(self) -> bool:
        """Whether a run of ours with such tags is the root of a submission."""
        return self.task_id is None and self.attempt_of is None

    @classmethod
    def of(cls, tags: Collection[str]) -> Tags:
        """Return what `tags` say."""
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
        tags: What its tags say.
        labels: Its labels.
        parameters: Its parameters.
        type: Type of its state, upper case.
        state: Name of its state.
        message: Message of its state.
        since: When it got into this state, seconds since the epoch.
        created: When it was made, seconds since the epoch.
        run_count: How often it was started.
    """

    id: str
    name: str = ""
    tags: Tags = field(default_factory=Tags)
    labels: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    type: str = "PENDING"
    state: str = ""
    message: str = ""
    since: float = 0.0
    created: float = 0.0
    run_count: int = 0

    @property
    def final(self) -> bool:
        """Whether it has ended."""
        return self.type in FINAL

    @property
    def submission_id(self) -> str:
        """The submission; a root run that nobody submitted is its own."""
        return self.tags.submission_id or str(self.parameters.get("submission_id") or self.id)

    @property
    def attempt(self) -> int:
        """The attempt that the labels of a stage run know of, from 1."""
        text = str(self.labels.get(ATTEMPT_LABEL, 1))
        return int(text) if text.isdigit() else 1


class Runs(Protocol):
    """Reads flow runs; every method raises `httpx.HTTPError` when the API does not answer."""

    async def get(self, run_ids: Collection[str]) -> Mapping[str, RunView]:
        """Return those of the runs that are there, by id."""
        ...

    async def of_submissions(self, submission_ids: Collection[str]) -> Sequence[RunView]:
        """Return root and stage runs of submissions, oldest first."""
        ...

    async def at_hand(self, submission_ids: Collection[str], run_ids: Collection[str] = ()) -> Sequence[RunView]:
        """Return root runs of submissions, what is below them, and the runs `run_ids`.

        Found by ids, which costs the same however many runs there were; a stage run that somebody made outside of a
        root run is found only by its id.
        """
        ...

    async def live(self) -> Sequence[RunView]:
        """Return all runs of ours that have not ended, oldest first."""
        ...

    async def made_since(self, ts: float) -> Sequence[RunView]:
        """Return all root runs of ours that were to start after `ts`, oldest first."""
        ...

    async def facts(self, run_ids: Collection[str]) -> Sequence[RunEvent]:
        """Return what the stage runner has told about runs and Prefect has kept (some seconds late), in order."""
        ...


class PrefectRuns:
    """Reads from Prefect's API.

    Args:
        client: Open client.
    """

    def __init__(self, client: PrefectClient) -> None:
        self._client = client

    async def get(self, run_ids: Collection[str]) -> Mapping[str, RunView]:
        """See `Runs`."""
        if not run_ids:
            return {}
        if len(run_ids) == 1:
            row = await ask(self._client, "GET", f"/flow_runs/{next(iter(run_ids))}")
            return {} if row is None else {row["id"]: view(row)}
        found = await self._filter({"id": {"any_": list(run_ids)}})
        return {run.id: run for run in found}

    async def of_submissions(self, submission_ids: Collection[str]) -> Sequence[RunView]:
        """See `Runs`."""
        names, found = list(submission_ids), []
        for at in range(0, len(names), _NAMED):
            tags = [f"mloc-submission:{name}" for name in names[at : at + _NAMED]]
            found += await self._filter({"tags": {"any_": tags}})
        return found

    async def at_hand(self, submission_ids: Collection[str], run_ids: Collection[str] = ()) -> Sequence[RunView]:
        """See `Runs`: a root run has the submission as its idempotency key, or is its own submission."""
        names = list(submission_ids)
        ids = [name for name in (*names, *run_ids) if _is_id(name)]
        found: dict[str, RunView] = {}
        for at in range(0, max(len(names), len(ids)), _AT_HAND):
            some = {"id": {"any_": ids[at : at + _AT_HAND]}, "idempotency_key": {"any_": names[at : at + _AT_HAND]}}
            found |= {run.id: run for run in await self._filter({"operator": "or_", **some})}
        roots = [run.id for run in found.values() if run.tags.root]
        for at in range(0, len(roots), _AT_HAND):
            below = await self._filter({"parent_flow_run_id": {"any_": roots[at : at + _AT_HAND]}})
            found |= {run.id: run for run in below}
        return list(found.values())

    async def live(self) -> Sequence[RunView]:
        """See `Runs`."""
        return await self._filter({"tags": {"all_": ["mloc"]}, "state": {"type": {"any_": list(LIVE)}}})

    async def made_since(self, ts: float) -> Sequence[RunView]:
        """See `Runs`."""
        after = datetime.fromtimestamp(ts, UTC).isoformat()
        found = await self._filter({"tags": {"all_": ["mloc"]}, "expected_start_time": {"after_": after}})
        return [run for run in found if run.tags.root]

    async def facts(self, run_ids: Collection[str]) -> Sequence[RunEvent]:
        """See `Runs`."""
        ids, found = list(run_ids), []
        for at in range(0, len(ids), _NAMED):
            resources = [f"prefect.flow-run.{i}" for i in ids[at : at + _NAMED]]
            body: Any = {
                "filter": {"event": {"prefix": [PREFIX]}, "resource": {"id": resources}, "order": "ASC"},
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
    """Return the view of a flow run in the form of the API's answers."""
    state = row.get("state") or {}
    return RunView(
        id=str(row["id"]),
        name=str(row.get("name") or ""),
        tags=Tags.of(row.get("tags") or ()),
        labels=row.get("labels") or {},
        parameters=row.get("parameters") or {},
        type=str(state.get("type") or "PENDING"),
        state=str(state.get("name") or ""),
        message=str(state.get("message") or ""),
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
