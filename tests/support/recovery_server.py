"""As much of Prefect's API as the recovery of runs needs."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from mloc_prefect.cluster.run_recovery import RunRecovery
from mloc_prefect.cluster.worker_card import WorkerCard
from mloc_prefect.prefect_ext.run_facts import INCARNATION_LABEL, WORKER_LABEL, taken_by
from tests.support.cards import card

DEAD = card("w")


def run(run_id: str, flow: str, state: str, *, worker: str | None = "w", incarnation: str = "i1", **fields: Any) -> Any:
    labels = {WORKER_LABEL: worker, INCARNATION_LABEL: incarnation} if worker and state != "PENDING" else {}
    message = taken_by(worker, incarnation) if worker and state == "PENDING" else fields.pop("message", None)
    return {
        "id": run_id,
        "name": run_id,
        "flow_id": flow,
        "labels": labels,
        "run_count": 1,
        "infrastructure_pid": None,
        "parent": None,
        "state": {"type": state, "message": message},
        **fields,
    }


class Server:
    """As much of Prefect's API as recovery uses."""

    def __init__(self, *runs: Any) -> None:
        self.runs = {r["id"]: r for r in runs}
        self.steps: list[str] = []

    async def request(self, method: str, path: str, json: Any = None) -> Any:
        return SimpleNamespace(content=b"x", json=lambda: self.answer(method, path, json))

    def answer(self, method: str, path: str, body: Any) -> Any:
        if path == "/flow_runs/filter":
            return self.found(body)
        kind, _, rest = path.strip("/").partition("/")
        name = rest.split("/")[0]
        if kind == "flows":
            return {"name": name}
        if method == "GET":
            return json.loads(json.dumps(self.runs[name]))
        if rest.endswith("/labels"):
            self.runs[name]["labels"] |= body
        elif method == "PATCH":
            assert body == {"infrastructure_pid": None}
        else:
            state = body["state"]
            self.runs[name]["state"] = {k: v for k, v in state.items() if k != "name"}
            self.steps.append(f"{name} {state['name']}{'' if body['force'] else ' asked'}")
        return {}

    def found(self, body: Any) -> list[Any]:
        wanted = body["flow_runs"]
        parents = wanted.get("parent_flow_run_id", {}).get("any_")
        types = wanted["state"]["type"]["any_"]
        return [
            json.loads(json.dumps(r))
            for r in self.runs.values()
            if r["state"]["type"] in types and (parents is None or r["parent"] in parents)
        ]

    async def recover(self, dead: WorkerCard = DEAD, *, retries: int = 3) -> list[str]:
        await RunRecovery(self, retries).recover(dead)  # type: ignore[arg-type]
        return self.steps
