"""Follows flow runs to their ends, by events as they come and by polling all of them now and then."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx

from mloc_prefect.errors import reason
from mloc_prefect.prefect_ext.requests import ask
from mloc_prefect.prefect_ext.state_reasons import reason_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from prefect.client.orchestration import PrefectClient
    from prefect.events import Event

    from mloc_prefect.prefect_ext.state_reasons import StateReason

_log = logging.getLogger(__name__)

POLL_SECONDS = 5.0
"""How late the end of a run is noticed at most when its event was lost."""

FINAL = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
GONE = "DELETED"
"""State of a run that was deleted."""

_DELETED = {"type": GONE, "message": "the run was deleted"}

_RUN = "prefect.flow-run."
_PAGE = 200
_FULL_POLL_EVERY = 12  # polls of which one includes runs that wait: they may have been deleted


@dataclass(frozen=True, slots=True)
class FollowedState:
    """State of a followed run.

    Attributes:
        type: Prefect's state type, or `GONE`.
        message: Message of the state, for people.
        reason: Why the run has it, or None; events do not say it, so it is known once the API has answered.
    """

    type: str = "SCHEDULED"
    message: str = ""
    reason: StateReason | None = None


@dataclass
class FollowedRun:
    """One flow run.

    Attributes:
        latest: Its newest known state.
        changed: Set when that changed; the caller that waits clears it.
    """

    latest: FollowedState = FollowedState()
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def state(self) -> str:
        """Prefect's state type, or `GONE`."""
        return self.latest.type

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.state in FINAL or self.state == GONE

    async def wait(self, seconds: float) -> None:
        """Return when the state changed, or after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self.changed.wait()
        except TimeoutError:
            return
        self.changed.clear()


class RunFollower:
    """Knows the latest states of runs; enter `running` for the polls. Bound to one event loop.

    Args:
        client: Open client.
    """

    def __init__(self, client: PrefectClient) -> None:
        self._client = client
        self._followed: dict[UUID, FollowedRun] = {}

    @contextmanager
    def following(self, flow_run_id: UUID) -> Iterator[FollowedRun]:
        """Follow a run for the length of the block; one caller for each run."""
        followed = self._followed[flow_run_id] = FollowedRun()
        try:
            yield followed
        finally:
            del self._followed[flow_run_id]

    def notice(self, event: Event) -> None:
        """Take a state event. It may come before its change is committed."""
        name = event.resource.id.removeprefix(_RUN)
        try:
            followed = self._followed.get(UUID(name))
        except ValueError:
            return
        kind = event.resource.get("prefect.state-type")
        if followed is not None and not followed.ended and kind:
            _note_state(followed, {"type": kind, "message": event.resource.get("prefect.state-message")})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Poll until the block ends."""
        task = asyncio.create_task(self._poll_for_ever(), name="follow runs")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def confirm(self, flow_run_id: UUID) -> None:
        """Set the state of one followed run to what the API says now.

        Raises:
            httpx.HTTPError: It does not answer.
        """
        followed = self._followed[flow_run_id]
        run = await ask(self._client, "GET", f"/flow_runs/{flow_run_id}")
        _note_state(followed, _DELETED if run is None else run["state"] or {})

    async def poll(self, *, waiting_too: bool = True) -> None:
        """Read all followed runs from the API.

        Args:
            waiting_too: Include runs that wait.

        Raises:
            httpx.HTTPError: It does not answer.
        """
        wanted = [run_id for run_id, run in self._followed.items() if not run.ended]
        for start in range(0, len(wanted), _PAGE):
            part = wanted[start : start + _PAGE]
            runs: dict[str, object] = {"id": {"any_": [str(run_id) for run_id in part]}}
            if not waiting_too:
                runs["state"] = {"type": {"not_any_": ["SCHEDULED"]}}
            found = await ask(self._client, "POST", "/flow_runs/filter", {"flow_runs": runs, "limit": _PAGE})
            self._take(part, {UUID(run["id"]): run["state"] or {} for run in found or ()}, waiting_too)

    def _take(self, asked: list[UUID], found: dict[UUID, dict[str, Any]], waiting_too: bool) -> None:
        for run_id in asked:
            followed = self._followed.get(run_id)
            if followed is None or followed.ended:
                continue
            if run_id in found:
                _note_state(followed, found[run_id])
            elif waiting_too:
                _note_state(followed, _DELETED)

    async def _poll_for_ever(self) -> None:
        count = 0
        while True:
            await asyncio.sleep(POLL_SECONDS)
            count += 1
            if not self._followed:
                continue
            try:
                await self.poll(waiting_too=count % _FULL_POLL_EVERY == 0)
            except httpx.HTTPError as error:
                _log.info("could not check the runs elsewhere, will retry: %s", reason(error))


def _note_state(followed: FollowedRun, state: Mapping[str, Any]) -> None:
    """Note a state in the form of the API; a change wakes the caller that waits."""
    known = FollowedState(state.get("type") or followed.state, state.get("message") or "", reason_of(state))
    if known != followed.latest:
        followed.latest = known
        followed.changed.set()
