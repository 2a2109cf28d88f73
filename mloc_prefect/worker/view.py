"""The workers as one of them sees them: who is there, who is gone, and where a request would fit, in words."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mloc_prefect.plan.resources import memory_text
from mloc_prefect.worker.directory import read_within
from mloc_prefect.worker.gpus import gpus_text, matching_gpus, wanted_gpus, wanted_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mloc_prefect.orchestrate.dispatch import StageJob
    from mloc_prefect.plan.model import ResourceRequest
    from mloc_prefect.worker.card import WorkerCard
    from mloc_prefect.worker.directory import Directory

_READ_SECONDS = 10.0
_WORDS_SECONDS = 1.0


@dataclass(slots=True)
class _Seen:
    card: WorkerCard
    at: float


class WorkersView:
    """Cards of all workers, with when each was last seen to change, by our own clock.

    Args:
        directory: Where the cards are.
        ttl: Seconds without a heartbeat after which a worker counts as gone, three of its heartbeats at least.
        own: Our own card, which needs no look, or None.
        clock: Seconds, never going back.
    """

    def __init__(
        self,
        directory: Directory,
        ttl: float,
        *,
        own: Callable[[], WorkerCard | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory = directory
        self._ttl = ttl
        self._own = own
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._last_look: float | None = None

    async def look(self) -> bool:
        """Read the cards; returns False when they cannot be read now."""
        cards = await read_within(self.directory, _READ_SECONDS)
        if cards is None:
            return False
        now = self._clock()
        if self._last_look is None or now - self._last_look > self._ttl / 2:
            # We were away ourselves (no server, or this process was stopped): nobody could be seen meanwhile.
            for seen in self._seen.values():
                seen.at = now
        self._last_look = now
        old = self._seen
        self._seen = {}
        for card in cards:
            before = old.get(card.id)
            same = before is not None and _beat(before.card) == _beat(card)
            self._seen[card.id] = _Seen(card, before.at if before is not None and same else now)
        return True

    @property
    def live(self) -> tuple[WorkerCard, ...]:
        """Cards of those that are there, our own as it is now."""
        own = self._own()
        now = self._clock()
        others = [
            s.card
            for s in self._seen.values()
            if self._heard(s, now) and not s.card.process.seen_dead() and not (own and s.card.id == own.id)
        ]
        return tuple(sorted([*others, *([own] if own else [])], key=lambda card: card.id))

    @property
    def others(self) -> tuple[WorkerCard, ...]:
        """`live` without our own."""
        own = self._own()
        return tuple(card for card in self.live if own is None or card.id != own.id)

    @property
    def dead(self) -> tuple[WorkerCard, ...]:
        """Cards of those that are gone: no heartbeat within the time to live, or seen to have ended."""
        own = self._own()
        now = self._clock()
        return tuple(
            s.card
            for s in self._seen.values()
            if (not self._heard(s, now) or s.card.process.seen_dead())
            and not (own and (s.card.id, s.card.incarnation) == (own.id, own.incarnation))
        )

    def _heard(self, seen: _Seen, now: float) -> bool:
        """Return whether a heartbeat came within the time to live; of one that beats slowly, within three beats."""
        return now - seen.at < seen.card.patience(self._ttl)


def _beat(card: WorkerCard) -> tuple[str, int]:
    return card.incarnation, card.beat


class Reasons:
    """Says why jobs wait; a thousand equal ones may ask.

    Args:
        view: All workers.
    """

    def __init__(self, view: WorkersView) -> None:
        self._view = view
        self._said: dict[tuple[ResourceRequest, bool], tuple[float, str]] = {}

    def why(self, job: StageJob) -> str:
        """Return in words why a job waits."""
        key, now = (job.resources, job.leased), time.monotonic()
        at, text = self._said.get(key, (0.0, ""))
        if now - at > _WORDS_SECONDS:
            text = why_waiting(job.resources, self._view.live, lease=job.leased)
            self._said = {k: v for k, v in self._said.items() if now - v[0] <= _WORDS_SECONDS} | {key: (now, text)}
        return text


def why_waiting(request: ResourceRequest, cards: Iterable[WorkerCard], *, lease: bool = True) -> str:
    """Return why `request` waits, e.g. `needs 2x a100 with 80 GiB; 3 workers online, largest free: 1x l4 24 GiB`.

    Args:
        request: What is wanted.
        cards: Workers that are there.
        lease: Whether it needs a device.
    """
    there = [card for card in cards if card.role == "worker" and not card.draining]
    wish = f"needs {_wish(request)}"
    if not there:
        return f"{wish}; no worker online"
    online = f"{len(there)} worker{'s' * (len(there) > 1)} online"
    able = [card for card in there if card.could_run(request)]
    if not able:
        return f"{wish}; {online}, {_largest(request, there)}"
    roomy = [card for card in able if card.has_room(request, lease=lease)]
    if roomy:
        return f"{wish}; {online}, {_names(roomy)} should take it soon"
    busy = "is busy" if len(able) == 1 else "are busy"
    return f"{wish}; {online}, {_names(able)} could run it but {busy}{_holders(able)}"


def _wish(request: ResourceRequest) -> str:
    parts = [wanted_text(request)] if wanted_gpus(request) else []
    parts += [f"{request.cpus} cpu"] if request.cpus is not None else []
    parts += [f"{memory_text(request.memory_bytes)} of memory"] if request.memory_bytes else []
    parts += [f"tag {', '.join(request.tags)}"] if request.tags else []
    if wanted_gpus(request):  # of the rest only what is unusual: it would hide what matters
        parts = [parts[0], *([parts[-1]] if request.tags else [])]
    return " and ".join(parts) or "a worker"


def _largest(request: ResourceRequest, there: Sequence[WorkerCard]) -> str:
    """Return the most that any worker could give of what is asked for."""
    if wanted_gpus(request):
        best = max(there, key=lambda c: (len(matching_gpus(request, c.idle_gpus)), _total(c), len(c.idle_gpus)))
        what = gpus_text(best.idle_gpus) if best.idle_gpus else "no gpu"
    else:
        best = max(there, key=lambda c: (c.inventory.cpus, c.inventory.memory_bytes or 0))
        memory = best.inventory.memory_bytes
        what = f"{best.inventory.cpus} cpu" + (f", {memory_text(memory >> 30 << 30)}" if memory else "")
    tags = f" (tags {', '.join(best.inventory.tags) or 'none'})" if request.tags else ""
    return f"largest free: {what}{tags}"


def _total(card: WorkerCard) -> int:
    return max((gpu.memory_bytes or 0 for gpu in card.idle_gpus), default=0)


def _names(cards: Sequence[WorkerCard]) -> str:
    shown = ", ".join(card.id for card in cards[:3])
    return shown + (f" and {len(cards) - 3} more" if len(cards) > 3 else "")


def _holders(cards: Sequence[WorkerCard]) -> str:
    holders = list(dict.fromkeys(busy.holder for card in cards for busy in card.leases))
    return f" with {', '.join(holders[:3])}{' and others' * (len(holders) > 3)}" if holders else ""
