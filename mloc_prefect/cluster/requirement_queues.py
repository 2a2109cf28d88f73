"""Work queues by what their runs need: one for each requirement class, created on demand.

All runs of such a queue need the same, so a first run that does not fit hides only its equals, and a worker polls only
queues that it could serve. The name of a queue says what its runs need for people, its description for workers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.hardware.gpus import wanted_gpus
from mloc_prefect.plan.resources import ResourceRequest
from mloc_prefect.prefect_ext.requests import ask

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prefect.client.orchestration import PrefectClient

logger = logging.getLogger("prefect.mloc.worker")

_MARK = "mloc: "
_UNITS = (("t", 40), ("g", 30), ("m", 20), ("k", 10), ("b", 0))
_PAGE = 200
_KEPT = "Root runs. This limit follows that of the pool, so that room for their stages is left."


@dataclass(frozen=True, slots=True)
class RequirementClass:
    """What all runs of one queue need.

    Attributes:
        request: Hardware and tags.
        lease: Whether a device is leased for it; light work needs none.
        priority: `spec.priority`; larger is sooner.
    """

    request: ResourceRequest
    lease: bool = True
    priority: int = 0

    @property
    def name(self) -> str:
        """Name of the queue, e.g. `gpu-2-a100-80g` or `light-c1-m256m-p5`."""
        r = self.request
        parts = ["gpu", str(r.gpu_count)] if wanted_gpus(r) else ["cpu" if self.lease else "light"]
        if wanted_gpus(r):
            parts += [_word(r.gpu_type)] * bool(r.gpu_type) + [_size(r.gpu_memory_bytes)] * bool(r.gpu_memory_bytes)
            parts += ["whole"] * r.gpu_exclusive + ["light"] * (not self.lease)
        parts += [f"c{r.cpus}"] * (r.cpus is not None) + [f"m{_size(r.memory_bytes)}"] * bool(r.memory_bytes)
        parts += [f"t.{_word(tag)}" for tag in r.tags] + [f"p{self.priority}"] * bool(self.priority)
        return "-".join(parts)

    @property
    def description(self) -> str:
        """Description of the queue, which `from_description` reads."""
        data = {k: v for k, v in asdict(self.request).items() if v not in (None, 0, False, ())}
        return _MARK + json.dumps({"request": data, "lease": self.lease, "priority": self.priority}, sort_keys=True)

    @classmethod
    def from_description(cls, text: str | None) -> RequirementClass | None:
        """Return the class that a queue's description names, or None for a queue that is not ours."""
        if not (text or "").startswith(_MARK):
            return None
        try:
            data = json.loads((text or "").removeprefix(_MARK))
            request = {k: v for k, v in data["request"].items() if k in ResourceRequest.__dataclass_fields__}
            request["tags"] = tuple(request.get("tags", ()))
            return cls(ResourceRequest(**request), bool(data["lease"]), int(data["priority"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


@dataclass(frozen=True, slots=True)
class RequirementQueue:
    """A queue of the pool.

    Attributes:
        id: Its id, as events name it.
        name: Its name.
        priority: Prefect's; smaller is sooner.
        needs: What its runs need, or None for a queue that is not ours.
        limit: Most runs of it at once, or None.
        description: For people, and for workers.
    """

    id: str
    name: str
    priority: int
    needs: RequirementClass | None = None
    limit: int | None = None
    description: str = ""


async def read_queues(client: PrefectClient, pool: str) -> list[RequirementQueue]:
    """Return the queues of a pool that are not paused, in the order in which they are served; [] without a pool."""
    found: list[RequirementQueue] = []
    offset = 0
    while True:
        body = {"limit": _PAGE, "offset": offset}
        page = await ask(client, "POST", f"/work_pools/{pool}/queues/filter", body)
        found += [_queue(data) for data in page or () if not data["is_paused"]]
        offset += len(page or ())
        if len(page or ()) < _PAGE:
            return in_order(found)


def in_order(queues: Iterable[RequirementQueue]) -> list[RequirementQueue]:
    """Return queues in the order in which they are served: by the priority of specs, then by Prefect's."""
    return sorted(queues, key=lambda q: (-(q.needs.priority if q.needs else 0), q.priority, q.name))


async def ensure_queue(client: PrefectClient, pool: str, needs: RequirementClass) -> None:
    """Create the queue of a class when it does not exist."""
    if await ask(client, "GET", f"/work_pools/{pool}/queues/{needs.name}") is None:
        body = {"name": needs.name, "description": needs.description}
        await ask(client, "POST", f"/work_pools/{pool}/queues", body)


async def leave_room(client: PrefectClient, pool: str, roots: RequirementQueue, pool_limit: int | None) -> None:
    """Keep workflow runs one below the limit of the whole pool, which counts them too.

    Otherwise as many workflow runs as the pool may run would wait indefinitely for stages that may not start. A limit
    of the queue that a user has set is only reduced.

    Args:
        client: Open client.
        pool: Name of the pool.
        roots: The queue of workflow runs.
        pool_limit: The pool's limit, or None.
    """
    ours = roots.description == _KEPT
    wanted = None if pool_limit is None else max(1, pool_limit - 1)
    if roots.limit == wanted or not (ours or (wanted is not None and (roots.limit is None or roots.limit > wanted))):
        return
    if pool_limit == 1:
        logger.warning("work pool %r may run one run at a time: stages run only where their workflow run is", pool)
    body = {"concurrency_limit": wanted, "description": "" if wanted is None else _KEPT}
    await ask(client, "PATCH", f"/work_pools/{pool}/queues/{roots.name}", body)


def _queue(data: Mapping[str, Any]) -> RequirementQueue:
    text = data.get("description") or ""
    needs = RequirementClass.from_description(text)
    return RequirementQueue(
        data["id"], data["name"], data.get("priority") or 1, needs, data.get("concurrency_limit"), text
    )


def _word(text: str | None) -> str:
    """Return `text` in letters, digits and underscores; different texts stay different."""
    plain = re.sub(r"[^a-z0-9]+", "_", (text or "").lower())
    return plain if plain == text else f"{plain[:24]}_{hashlib.sha256((text or '').encode()).hexdigest()[:6]}"


def _size(size: int | None) -> str:
    """Return bytes in the largest unit that divides them, e.g. `80g`."""
    unit, power = next((u, p) for u, p in _UNITS if not (size or 0) % (1 << p))
    return f"{(size or 0) >> power}{unit}"
