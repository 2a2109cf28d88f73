"""What is known of a workflow run, and for how long."""

from __future__ import annotations

from typing import cast

import pytest
from prefect.client.schemas.objects import FlowRun

from mloc_prefect.prefect_ext.run_control import WorkflowRunReader


class Server:
    """Answers with a new object each time, at a time that the test sets."""

    def __init__(self) -> None:
        self.steady, self.wall, self.asked = 100.0, 5000.0, 0

    async def read(self) -> FlowRun:
        self.asked += 1
        return cast("FlowRun", object())

    def reader(self) -> WorkflowRunReader:
        return WorkflowRunReader(self.read, fresh=0.5, clocks=(lambda: self.steady, lambda: self.wall))


async def test_what_was_read_just_now_is_not_asked_again() -> None:
    server = Server()
    reader = server.reader()
    found = await reader.read_now()
    server.steady += 0.4
    server.wall += 0.4
    assert await reader.read_recent() is found
    assert server.asked == 1


async def test_who_must_know_asks() -> None:
    server = Server()
    reader = server.reader()
    assert await reader.read_now() is not await reader.read_now()


@pytest.mark.parametrize(("steady", "wall"), [(0.6, 0.6), (0.6, 0.0), (0.0, 3600.0), (0.1, -3600.0)])
async def test_a_pause_or_a_sleep_of_the_machine_ends_what_is_known(steady: float, wall: float) -> None:
    server = Server()
    reader = server.reader()
    await reader.read_recent()
    server.steady += steady
    server.wall += wall
    await reader.read_recent()
    assert server.asked == 2
