"""Which start of a run may still commit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import State
from prefect.states import AwaitingRetry, Cancelling, Completed, Crashed, Running

from mloc_prefect.orchestrate.fence import ApiFence, StaleRunError


class Server:
    """Answers one run."""

    def __init__(self, state: State[Any], run_count: int) -> None:
        self.found = SimpleNamespace(state=state, run_count=run_count)

    async def read_flow_run(self, _: Any) -> Any:
        return self.found


@pytest.mark.parametrize("state", [Running(), Cancelling()])
async def test_the_current_start_may(state: State[Any]) -> None:
    await ApiFence(Server(state, 2), uuid4(), 2).check()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "run_count", "words"),
    [
        (Running(), 3, "started again"),
        (Completed(), 2, "ended"),
        (Crashed(), 2, "ended"),
        (AwaitingRetry(), 2, "given up"),  # the time between the end of one start and the next
    ],
)
async def test_an_earlier_one_may_not(state: State[Any], run_count: int, words: str) -> None:
    with pytest.raises(StaleRunError, match=words):
        await ApiFence(Server(state, run_count), uuid4(), 2).check()  # type: ignore[arg-type]
