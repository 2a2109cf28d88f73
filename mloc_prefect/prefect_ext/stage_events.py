"""Events `mloc.stage.<what>` about the attempts of a stage, on the stage's flow run.

A stage is one subflow whatever its attempts, so its Prefect states do not show them. The events take the same way as
state changes (stream, websocket, database of events), so a reader sees both in order. They are posted to the API, not
sent through `emit_event`: the server takes events from that socket in batches, with Redis messaging up to ten seconds
late, and does not confirm them, while a post is answered once the event is in the stream.

From the second attempt on, the newest failure is in the labels of the run too: for people, and for a bridge that starts
after the events were dropped.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol
from uuid import UUID, uuid4

import httpx
from prefect.exceptions import PrefectException

from mloc_prefect.prefect_ext.requests import storable
from mloc_prefect.prefect_ext.run_facts import ATTEMPT_LABEL, ERROR_LABEL, NEXT_LABEL, STAGE_EVENT_PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from prefect.client.orchestration import PrefectClient

_log = logging.getLogger(__name__)


StageFact = Literal["waiting", "placed", "started", "failed", "shard"]
_FLUSH_SECONDS = 5.0
_AGAIN_SECONDS = 1.0
_LONGEST_ERROR = 8000  # characters
_LONGEST_LABEL = 500


class StageEvents(Protocol):
    """Reports facts about the attempts of one stage; returns at once."""

    def report(self, what: StageFact, attempt: int, **facts: Any) -> None:
        """Report one fact.

        Args:
            what: `shard` {step: waiting | placed | failed | done, part: {task_id, index, total}, part_attempt, and what
                these have}, `waiting` {reason}, `placed` {worker, protocol, flow_run}, `started` {worker, protocol},
                `failed` {worker, protocol, error, final, next_retry_at: UTC in ISO 8601 or None}.
            attempt: Attempt of the stage over all starts of its run, from 1.
            facts: See above.
        """


class NullStageEvents:
    """Reports to no one."""

    def report(self, what: StageFact, attempt: int, **facts: Any) -> None:
        """See `StageEvents`."""


@dataclass(frozen=True, slots=True)
class _Item:
    event: dict[str, Any]
    labels: dict[str, str | int] | None


class StageEventSender:
    """Sends events to the Prefect server, in order, in the background; an async context manager, flushes at its end.

    Args:
        client: Open client.
        flow_run_id: Run of the stage.
        name: Its name.
        tags: Its tags; the events carry them as Prefect's own do.
        task_id: Id of the task.

    Attributes:
        last_attempt: The latest attempt that was reported, from 1; 0 before the first.
    """

    def __init__(
        self, client: PrefectClient, flow_run_id: UUID, *, name: str, tags: Sequence[str], task_id: str
    ) -> None:
        self._client, self._flow_run_id, self._task_id = client, flow_run_id, task_id
        self._resource = {"prefect.resource.id": f"prefect.flow-run.{flow_run_id}", "prefect.resource.name": name}
        self._related = [{"prefect.resource.id": f"prefect.tag.{t}", "prefect.resource.role": "tag"} for t in tags]
        self.last_attempt = 0
        self._queue: list[_Item] = []
        self._more, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._sender: asyncio.Task[None] | None = None

    async def __aenter__(self) -> StageEventSender:
        self._sender = asyncio.create_task(self._send_all(), name=f"tell {self._flow_run_id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Wait until all is sent, so that it is in the stream before the end of the stage."""
        assert self._sender is not None
        sender, self._sender = self._sender, None
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                await self._idle.wait()
        except TimeoutError:
            pass
        finally:
            sender.cancel()
        if self._queue:
            _log.warning("%d events of stage run %s could not be sent", len(self._queue), self._flow_run_id)

    def report(self, what: StageFact, attempt: int, **facts: Any) -> None:
        """See `StageEvents`."""
        self.last_attempt = attempt
        payload = storable({"task_id": self._task_id, "attempt": attempt, **_cut(facts)})
        event = {
            "id": str(uuid4()),
            "occurred": datetime.now(UTC).isoformat(),
            "event": f"{STAGE_EVENT_PREFIX}{what}",
            "resource": self._resource,
            "related": self._related,
            "payload": payload,
        }
        self._queue.append(_Item(event, _labels(what, attempt, payload)))
        self._idle.clear()
        self._more.set()

    async def _send_all(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            while self._queue:
                items = list(self._queue)
                try:
                    await self._send(items)
                except httpx.HTTPError as error:
                    _log.warning("events of %s could not be sent, will retry: %s", self._resource, error)
                    await asyncio.sleep(_AGAIN_SECONDS)
                    continue
                except PrefectException as error:  # the run was deleted
                    _log.warning("events of %s are dropped: %s", self._resource, error)
                del self._queue[: len(items)]
            self._idle.set()

    async def _send(self, items: Sequence[_Item]) -> None:
        # Sent twice after a lost answer, it is still one event: the server knows its id.
        await self._client.request("POST", "/events", json=[item.event for item in items])
        labels = next((item.labels for item in reversed(items) if item.labels), None)
        if labels:
            await self._client.update_flow_run_labels(self._flow_run_id, dict(labels))


def _labels(what: StageFact, attempt: int, facts: Mapping[str, Any]) -> dict[str, str | int] | None:
    if what != "failed" or facts.get("final"):
        return None
    return {
        ATTEMPT_LABEL: attempt + 1,
        ERROR_LABEL: str(facts.get("error") or "")[:_LONGEST_LABEL],
        NEXT_LABEL: str(facts.get("next_retry_at") or ""),
    }


def _cut(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v[:_LONGEST_ERROR] if isinstance(v, str) else v for k, v in facts.items()}
