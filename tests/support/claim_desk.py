"""A worker's claims on what Prefect has scheduled, in memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import anyio
import httpx

from mloc_prefect.cluster.cluster_view import ClusterView
from mloc_prefect.cluster.membership import MemoryMembership
from mloc_prefect.cluster.requirement_queues import RequirementClass
from mloc_prefect.execution.protocol import ExecutionRequest
from mloc_prefect.flow.attempt_files import write_job
from mloc_prefect.flow.dispatcher import InProcessDispatcher, StageJob
from mloc_prefect.leases import MemoryLeaseBook
from mloc_prefect.plan.resources import ResourceRequest
from mloc_prefect.settings import get_settings
from mloc_prefect.tasks.base import ExecutorRef
from mloc_prefect.worker.claims.claim_loop import ClaimLoop
from mloc_prefect.worker.local_placement import LocalPlacement, StageSlots
from mloc_prefect.worker.machine import Machine
from mloc_prefect.worker.own_runs import OwnRuns
from mloc_prefect.worker.user_runs import UserRuns
from tests.support.cards import card

if TYPE_CHECKING:
    from pathlib import Path


ONE, TWO, NOWHERE = (RequirementClass(ResourceRequest(gpu_count=n)) for n in (1, 2, 16))
LIGHT = RequirementClass(ResourceRequest(cpus=1), lease=False)
ECHO = ExecutorRef("mloc_prefect.executors.echo:EchoExecutor", engine=False)
SHARED = ExecutorRef("mloc_prefect.executors.echo:EchoExecutor", shared=True)


class Desk:
    """A worker with two cards, and what Prefect has scheduled; answers as much of its API as claims use."""

    def __init__(self, root: Path, hosts: Any) -> None:
        own = card("me", "a100:80", "a100:80")
        self.root, self.limiter = root, anyio.CapacityLimiter(100)
        self.queues: dict[str, RequirementClass | None] = {"default": None, "coordinator": None}
        self.runs: list[tuple[str, Any]] = []
        self.asked: list[str] = []
        self.woken: list[float] = []
        self.down = False
        self.open = True
        self.pool_limit: int | None = None
        self.limits: dict[str, tuple[int | None, str]] = {}
        leases = MemoryLeaseBook(own.inventory)
        settings = get_settings(home=root)
        dispatcher = InProcessDispatcher(settings=settings, hosts=hosts, leases=leases, inventory=own.inventory)
        self.machine = Machine(own.inventory, leases, hosts, dispatcher, settings)
        self.here = LocalPlacement(
            "me", self.machine, StageSlots(lambda: self.limiter), lambda: self.open, lambda: None
        )
        self.directory = MemoryMembership()
        self.view = ClusterView(self.directory, 100.0, own=lambda: own)
        self.user = UserRuns(self.machine, OwnRuns(user_flows=True))
        self.claims = self.new_claims()

    def new_claims(
        self, *only: str, here: LocalPlacement | None = None, nowhere: bool = False, **times: float
    ) -> ClaimLoop:
        async def user_lease(run: Any) -> Any:
            return await self.user.lease(self, None, run)  # type: ignore[arg-type]

        return ClaimLoop(
            pool="gpu",
            limit=lambda: self.pool_limit,
            only=only,
            here=None if nowhere else here or self.here,
            view=self.view,
            wake=self.woken.append,
            user_lease=user_lease,
            ahead=10.0,
            **times,
        )

    def add(
        self, queue: str | RequirementClass, *, executor: ExecutorRef = ECHO, engine: str = "e", **parameters: Any
    ) -> UUID:
        """Schedule a run."""
        name = queue if isinstance(queue, str) else queue.name
        self.queues[name] = None if isinstance(queue, str) else queue
        run_id = uuid4()
        run: dict[str, Any] = {"id": str(run_id), "name": f"run-{len(self.runs)}", "flow_id": str(uuid4())}
        if isinstance(queue, RequirementClass):
            directory = str(self.root / str(run_id))
            request = ExecutionRequest("t", run["name"], "echo", executor.path, {}, directory, directory)
            options = {"model": engine}
            write_job(StageJob(request=request, executor=executor, engine_options=options, resources=queue.request))
            parameters = {"attempt_dir": directory, "engine": engine, **parameters}
        run["parameters"] = parameters
        self.runs.append((name, run | {"job_variables": parameters.pop("job_variables", {})}))
        return run_id

    async def poll(self, claims: ClaimLoop | None = None, **options: Any) -> list[UUID]:
        found = await (claims or self.claims).choose(self, (), **options)  # type: ignore[arg-type]
        taken = [claim.entry.flow_run.id for claim in found]
        self.last = found
        self.runs = [(queue, run) for queue, run in self.runs if UUID(run["id"]) not in taken]
        return taken

    async def request(self, method: str, path: str, json: Any = None) -> Any:
        if self.down:
            raise httpx.ConnectError("down")
        answer: Any
        if path.endswith("/queues/filter"):
            answer = [
                {
                    "id": name,
                    "name": name,
                    "priority": number,
                    "is_paused": False,
                    "description": needs.description if needs else self.limits.get(name, (None, ""))[1],
                    "concurrency_limit": self.limits.get(name, (None, ""))[0],
                }
                for number, (name, needs) in enumerate(self.queues.items())
            ]
        elif method == "PATCH":
            answer = {}
            self.limits[path.rsplit("/", 1)[-1]] = (json["concurrency_limit"], json["description"])
        else:
            self.asked += json["work_queue_names"]
            answer = [
                {"work_pool_id": str(uuid4()), "work_queue_id": str(uuid4()), "flow_run": run}
                for queue, run in self.runs
                if queue in json["work_queue_names"]
            ]
        return SimpleNamespace(content=b"x", json=lambda: answer, headers={})


def held(desk: Desk) -> list[tuple[str, ...]]:
    return sorted(entry.lease.devices for entry in desk.machine.leases.snapshot())
