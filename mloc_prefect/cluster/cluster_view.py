"""The workers as one process sees them: which are live, which were lost, and where a request would fit, as text."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mloc_prefect.cluster.membership import read_within
from mloc_prefect.hardware.gpus import gpus_text, matching_gpus, wanted_gpus, wanted_text
from mloc_prefect.plan.resources import memory_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mloc_prefect.cluster.membership import Membership
    from mloc_prefect.cluster.worker_card import WorkerCard
    from mloc_prefect.flow.dispatcher import StageJob
    from mloc_prefect.plan.resources import ResourceRequest

_READ_SECONDS = 10.0
_WORDS_SECONDS = 1.0
_REQUESTS = 2  # of a heartbeat


@dataclass(slots=True)
class _Seen:
    card: WorkerCard
    at: float


class ClusterView:
    """Cards of all workers, and when each was last seen to change, by our own clock.

    Args:
        membership: Where the cards are.
        ttl: Seconds without a heartbeat after which a worker counts as lost; at least three of its heartbeats.
        own: Returns our own card, which need not be read, or None.
        clock: Seconds, never going back.
    """

    def __init__(
        self,
        membership: Membership,
        ttl: float,
        *,
        own: Callable[[], WorkerCard | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.membership = membership
        self._ttl = ttl
        self._own = own
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._last_refresh: float | None = None
        self._slowness = 0.0

    async def refresh(self) -> bool:
        """Read the cards; returns False when they cannot be read now."""
        asked = self._clock()
        cards = await read_within(self.membership, _READ_SECONDS)
        if cards is None:
            return False
        now = self._clock()
        self._slowness = _REQUESTS * (now - asked)
        if self._last_refresh is None or now - self._last_refresh > self._ttl / 2:
            # This process was away itself (no server, or it was paused): it could see no worker meanwhile.
            for seen in self._seen.values():
                seen.at = now
        self._last_refresh = now
        old = self._seen
        self._seen = {}
        for card in cards:
            before = old.get(card.id)
            same = before is not None and _beat(before.card) == _beat(card)
            self._seen[card.id] = _Seen(card, before.at if before is not None and same else now)
        return True

    @property
    def is_current(self) -> bool:
        """Whether the cards were read within the time to live: else it is not known who is there."""
        return self._last_refresh is not None and self._clock() - self._last_refresh < self._ttl

    @property
    def cards(self) -> tuple[WorkerCard, ...]:
        """All cards of the last look, also those of lost workers, and our own as it is now."""
        own = self._own()
        return (*(seen.card for seen in self._seen.values()), *((own,) if own else ()))

    @property
    def live(self) -> tuple[WorkerCard, ...]:
        """Cards of the workers that are there, our own as it is now."""
        own = self._own()
        others = [
            s.card
            for s in self._seen.values()
            if self._heard(s) and not s.card.process.seen_dead() and not (own and s.card.id == own.id)
        ]
        return tuple(sorted([*others, *([own] if own else [])], key=lambda card: card.id))

    @property
    def others(self) -> tuple[WorkerCard, ...]:
        """`live` without our own."""
        own = self._own()
        return tuple(card for card in self.live if own is None or card.id != own.id)

    @property
    def lost(self) -> tuple[WorkerCard, ...]:
        """Cards of lost workers: no heartbeat within the time to live, or their process was seen to have ended."""
        own = self._own()
        return tuple(
            s.card
            for s in self._seen.values()
            if (not self._heard(s) or s.card.process.seen_dead())
            and not (own and (s.card.id, s.card.incarnation) == (own.id, own.incarnation))
        )

    def _heard(self, seen: _Seen) -> bool:
        """Return whether a heartbeat came within the time to live, or within three beats of a slow worker.

        At the last look: while the cards cannot be read, or reading them takes long, no worker was seen to be silent.
        A server that answers slowly to us does so to the heartbeats of others, which need some requests each.
        """
        assert self._last_refresh is not None  # nothing is seen before
        return self._last_refresh - seen.at < seen.card.patience(self._ttl) + self._slowness


def _beat(card: WorkerCard) -> tuple[str, int]:
    return card.incarnation, card.beat


class WaitReasons:
    """Explains why jobs wait; answers are cached, as a thousand equal jobs may ask.

    Args:
        view: All workers.
    """

    def __init__(self, view: ClusterView) -> None:
        self._view = view
        self._said: dict[tuple[ResourceRequest, bool], tuple[float, str]] = {}

    def why(self, job: StageJob) -> str:
        """Return as text why a job waits."""
        key, now = (job.resources, job.leased), time.monotonic()
        at, text = self._said.get(key, (0.0, ""))
        if now - at > _WORDS_SECONDS:
            cards = self._view.live if self._view.is_current else None
            text = why_waiting(job.resources, cards, lease=job.leased)
            self._said = {k: v for k, v in self._said.items() if now - v[0] <= _WORDS_SECONDS} | {key: (now, text)}
        return text


def why_waiting(request: ResourceRequest, cards: Iterable[WorkerCard] | None, *, lease: bool = True) -> str:
    """Return why `request` waits, e.g. `needs 2x a100 with 80 GiB; 3 workers online, largest free: 1x l4 24 GiB`.

    Args:
        request: What is wanted.
        cards: Workers that are there, or None while that is not known.
        lease: Whether it needs a device.
    """
    wish = f"needs {_wish(request)}"
    if cards is None:
        return f"{wish}; the list of workers cannot be read at the moment"
    there = [card for card in cards if card.role == "worker" and not card.draining]
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
    """Return the most that any worker could give of the request."""
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
