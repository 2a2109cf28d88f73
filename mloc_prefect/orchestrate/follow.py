"""Following flow runs to their end: by events as they come, and by asking for all of them at once now and then."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

import httpx

from mloc_prefect.orchestrate.api import ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from prefect.client.orchestration import PrefectClient
    from prefect.events import Event

_log = logging.getLogger(__name__)

POLL_SECONDS = 5.0
"""How late the end of a run is noticed at most when its event was lost."""

FINAL = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
GONE = "DELETED"
"""State of a run that is not there any more."""

_RUN = "prefect.flow-run."
_PAGE = 200
_FULL_LOOK = 12  # every so many polls also those that wait are asked for: somebody may have deleted them


@dataclass
class Followed:
    """One flow run.

    Attributes:
        state: Prefect's state type, or `GONE`.
        message: Message of the state.
        changed: Set when `state` changed; whoever waits clears it.
    """

    state: str = "SCHEDULED"
    message: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ended(self) -> bool:
        """Whether it is over."""
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
    """Keeps the states of runs; `running` must be entered for the poll. Bound to one event loop.

    Args:
        client: Open client.
    """

    def __init__(self, client: PrefectClient) -> None:
        self._client = client
        self._followed: dict[UUID, Followed] = {}

    @contextmanager
    def following(self, flow_run_id: UUID) -> Iterator[Followed]:
        """Follow a run for the length of the block; one caller for each run."""
        followed = self._followed[flow_run_id] = Followed()
        try:
            yield followed
        finally:
            del self._followed[flow_run_id]

    def notice(self, event: Event) -> None:
        """Take a state event. It came before its change was committed: a hint to look, except for its facts."""
        name = event.resource.id.removeprefix(_RUN)
        try:
            followed = self._followed.get(UUID(name))
        except ValueError:
            return
        kind = event.resource.get("prefect.state-type")
        if followed is not None and not followed.ended and kind:
            self._set(followed, kind, event.resource.get("prefect.state-message") or "")

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
        state = {"type": GONE, "message": "the run was deleted"} if run is None else run["state"] or {}
        self._set(followed, state.get("type") or followed.state, state.get("message") or "")

    async def poll(self, *, waiting_too: bool = True) -> None:
        """Ask the API for all followed runs.

        Args:
            waiting_too: Also for those that wait; else only for those that do not.

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

    def _take(self, asked: list[UUID], found: dict[UUID, dict[str, str]], waiting_too: bool) -> None:
        for run_id in asked:
            followed = self._followed.get(run_id)
            if followed is None or followed.ended:
                continue
            if run_id in found:
                state = found[run_id]
                self._set(followed, state.get("type") or followed.state, state.get("message") or "")
            elif waiting_too:
                self._set(followed, GONE, "the run was deleted")

    def _set(self, followed: Followed, state: str, message: str) -> None:
        if (state, message) != (followed.state, followed.message):
            followed.state, followed.message = state, message
            followed.changed.set()

    async def _poll_for_ever(self) -> None:
        count = 0
        while True:
            await asyncio.sleep(POLL_SECONDS)
            count += 1
            if not self._followed:
                continue
            try:
                await self.poll(waiting_too=count % _FULL_LOOK == 0)
            except httpx.HTTPError as error:
                _log.info("no look at the runs elsewhere this time: %s", str(error) or type(error).__name__)
