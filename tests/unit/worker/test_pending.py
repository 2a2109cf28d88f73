"""Runs that the server may have given to a worker without its knowing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid4

import httpx
import pytest

from mloc_prefect.cluster.deployments import RUN_WORKFLOW
from mloc_prefect.cluster.run_recovery import RecoveryCause, RunRecovery
from mloc_prefect.prefect_ext.run_facts import taken_by
from mloc_prefect.worker.claims import pending as module
from mloc_prefect.worker.claims.pending import PendingClaims
from tests.support.cards import card

if TYPE_CHECKING:
    from collections.abc import Collection

ME = card("me")


class Server:
    """Runs by id: state and its message. Answers what is asked for to put runs back."""

    def __init__(self) -> None:
        self.runs: dict[UUID, tuple[str, str]] = {}
        self.asked = 0
        self.down = False
        self.now = 0.0
        self.claims = PendingClaims(
            ME.id, cast("Any", self), is_sure=lambda _: False, put_back=self.put_back, clock=lambda: self.now
        )

    async def put_back(self, runs: Collection[UUID]) -> Collection[str]:
        recovery = RunRecovery(self, 1)  # type: ignore[arg-type]
        return await recovery.put_back(ME, RecoveryCause("it had no answer"), only=runs)

    def take(self, state: str = "PENDING", message: str = taken_by(ME.id, ME.incarnation)) -> UUID:
        run = uuid4()
        self.runs[run] = (state, message)
        self.claims.note_unknown(run)
        return run

    async def request(self, method: str, path: str, json: Any = None) -> Any:
        if self.down:
            raise httpx.ConnectError("down")
        answer: Any = {}
        if path == "/flow_runs/filter":
            self.asked += 1
            wanted = json["flow_runs"]
            answer = [
                {"id": str(run), "name": "r", "flow_id": "f", "state": {"type": state, "message": message}}
                for run, (state, message) in self.runs.items()
                if str(run) in wanted["id"]["any_"] and state in wanted["state"]["type"]["any_"]
            ]
        elif path.startswith("/flows/"):
            answer = {"name": RUN_WORKFLOW.flow}
        elif path.endswith("/set_state"):
            self.runs[UUID(path.split("/")[2])] = (json["state"]["type"], json["state"]["message"])
        return SimpleNamespace(content=b"x", json=lambda: answer)


@pytest.fixture
def server() -> Server:
    return Server()


async def test_what_was_taken_without_an_answer_is_scheduled_again(server: Server):
    run = server.take()
    await server.claims.settle_unknown(())
    assert server.runs[run] == ("SCHEDULED", "it had no answer")
    await server.claims.settle_unknown(())
    assert server.asked == 1


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("PENDING", taken_by("other", "1")),
        ("PENDING", taken_by(ME.id, "another process")),
        ("RUNNING", ""),
        ("SCHEDULED", ""),
    ],
)
async def test_what_others_have_stays_with_them(server: Server, state: str, message: str):
    run = server.take(state, message)
    await server.claims.settle_unknown(())
    assert server.runs[run] == (state, message)


async def test_what_is_here_is_left_alone(server: Server):
    run = server.take()
    await server.claims.settle_unknown({run})
    assert server.runs[run][0] == "PENDING"
    assert server.asked == 0


async def test_a_request_that_was_under_way_is_waited_for(server: Server):
    run = server.take("SCHEDULED", "")
    await server.claims.settle_unknown(())
    server.runs[run] = ("PENDING", taken_by(ME.id, ME.incarnation))
    server.now += module.REST_SECONDS
    await server.claims.settle_unknown(())
    assert server.runs[run][0] == "SCHEDULED"


async def test_a_server_that_is_away_is_asked_again(server: Server):
    run = server.take()
    server.down = True
    await server.claims.settle_unknown(())
    server.down = False
    server.now += module.REST_SECONDS
    await server.claims.settle_unknown(())
    assert server.runs[run][0] == "SCHEDULED"


async def test_the_server_is_asked_less_and_less_often(server: Server):
    """Each poll waits for the answer."""
    server.take("RUNNING", "")
    for _ in range(600):
        await server.claims.settle_unknown(())
        server.now += 1
    assert 10 < server.asked < 40
    server.take()
    await server.claims.settle_unknown(())
    assert {state for state, _ in server.runs.values()} == {"RUNNING", "SCHEDULED"}


async def test_it_rests_for_a_moment_and_is_forgotten_in_the_end(server: Server):
    run = server.take("SCHEDULED", "")
    assert server.claims.resting == {run}
    server.now += module.REST_SECONDS
    assert server.claims.resting == frozenset()
    server.now += module._UNKNOWN_SECONDS
    await server.claims.settle_unknown(())
    assert server.asked == 0
