"""Watching a task until it ends: lines, exit codes, restarts of the endpoint."""

from __future__ import annotations

import io
from typing import Any

import httpx
import pytest

from mloc_prefect.cli.client.task_watching import watch_tasks
from mloc_prefect.errors import DispatchError
from tests.support.client_endpoint import ONE, Fake, answering


class Changing(Fake):
    """Moves a record one step with each look at it."""

    def __init__(self, *steps: dict[str, Any] | int) -> None:
        super().__init__()
        self.steps = list(steps)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, int):
            raise httpx.ConnectError("refused", request=request)
        self.records[ONE] |= step
        return super().__call__(request)


def watched(*steps: dict[str, Any] | int) -> tuple[int, list[str]]:
    out = io.StringIO()
    pauses: list[float] = []
    code = watch_tasks(answering(Changing(*steps), sleep=pauses.append), [ONE], stream=out)
    return code, [line.split("  ", 1)[1] for line in out.getvalue().splitlines()]


def test_watching_ends_with_the_task_and_says_each_change_once():
    code, lines = watched(
        {"status": "PENDING"},
        {"status": "DISPATCHED", "assigned_worker": "w"},
        {"status": "DISPATCHED"},
        {"status": "WAITING", "error": "boom"},
        {"status": "DISPATCHED", "attempts": 2},
        {"status": "DONE", "error": None},
    )
    assert code == 0
    assert [line.split(": ", 1)[1].split(" in ")[0] for line in lines] == [
        "started echo",
        "boom",
        "started, attempt 2",
        "DONE",
        "1 of 1 tasks",
    ]


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED"])
def test_watching_a_task_that_does_not_end_well_is_exit_5(state):
    code, lines = watched({"status": state, "error": "why"})
    assert code == 5
    assert lines[-1].startswith("failed: 0 of 1 tasks")


def test_watching_cuts_no_reason(capsys):
    why, first = "waits: " + "no worker has enough of what it needs; " * 4 + "end", "out of memory " * 9 + "end"
    _, lines = watched(
        {"status": "WAITING", "error": why}, {"status": "FAILED", "error": f"{first}\n  on the card 0\n  twice"}
    )
    assert any(line.endswith(why) for line in lines)
    assert capsys.readouterr().err == f"error: first 5d1e7c2a: {first}\n  on the card 0\n  twice\n"
    watched({"status": "CANCELLED", "error": "cancelled"})
    assert capsys.readouterr().err == ""


def test_who_stops_watching_is_told_what_the_others_wait_for(capsys):
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    fake, out = Changing({"status": "WAITING", "error": "no free worker\n  asked: w1, w2"}), io.StringIO()
    assert watch_tasks(answering(fake, sleep=interrupt), [ONE], stream=out) == 130
    assert capsys.readouterr().err == "waiting: first 5d1e7c2a: no free worker\n  asked: w1, w2\n"
    assert "1 of 1 tasks continue" in out.getvalue()


def test_watching_outlasts_a_restart_of_the_endpoint():
    code, lines = watched({"status": "DISPATCHED"}, 503, 503, {"status": "DONE"})
    assert code == 0
    assert sum("retrying" in line for line in lines) == 1


def test_watching_gives_up_after_a_while():
    with pytest.raises(DispatchError):
        watched({"status": "DISPATCHED"}, 503)
