"""Delay of MLOC's messages after a state change in Prefect, compared with a subscriber of Prefect's websocket.

    python benchmarks/events.py [--quick] [--runs N] [--pause SECONDS]

An embedded Prefect server with its messaging on Valkey, a store of records, and `mloc bridge` as a process. Flow runs
of tasks with records are taken through Pending, Running and Completed over the API, one change after the other. This
process hears every change twice: from the bridge (channels `tasks` and `tasks.events`, published with the step of the
record) and by the websocket (what a dashboard without a bridge would do; it neither keeps records nor asks the API
whether an end holds). Times count from the answer to the change: then it is committed, and whoever made it knows.
Prefect emits events before it commits, so a time may be negative; those from the request on stand beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import httpx
from prefect.settings import PREFECT_API_URL, temporary_settings

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mloc_prefect.prefect_ext.server.main import Private  # noqa: E402
from mloc_prefect.store.backends import Stores, open_stores  # noqa: E402
from tests.support.bridging import bridge_process  # noqa: E402
from tests.support.prefect_api import environment  # noqa: E402
from tests.support.records import record  # noqa: E402
from tests.support.server import embedded_server  # noqa: E402
from tests.support.valkey import embedded_valkey  # noqa: E402

PORT = 27800
TARGET_P99_MS = 20
STATES = {"Pending": "tasks", "Running": "TASK_STARTED", "Completed": "TASK_SUCCEEDED"}
ARMS = ("bridge", "websocket")


@dataclass
class Times:
    """When each change was asked for, answered and heard of; keys are (task, state)."""

    asked: dict[tuple[str, str], float] = field(default_factory=dict)
    answered: dict[tuple[str, str], float] = field(default_factory=dict)
    heard: dict[str, dict[tuple[str, str], float]] = field(default_factory=lambda: {arm: {} for arm in ARMS})
    twice: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ARMS, 0))

    def hear(self, arm: str, task: str, state: str) -> None:
        """Note that an arm was told."""
        if (task, state) in self.heard[arm]:
            self.twice[arm] += 1
        self.heard[arm].setdefault((task, state), time.perf_counter())

    def milliseconds(self, arm: str, state: str | None, since: dict[tuple[str, str], float]) -> list[float]:
        """Return how late the arm was with the changes to a state (None: all), sorted."""
        heard = self.heard[arm]
        return sorted((heard[k] - at) * 1e3 for k, at in since.items() if k in heard and state in {None, k[1]})


async def hear_topics(stores: Stores, times: Times, ready: asyncio.Event) -> None:
    """Listen to what the bridge publishes."""
    names = {kind: state for state, kind in STATES.items()}
    async with stores.publisher.listen("tasks", "tasks.events") as messages:
        ready.set()
        async for channel, message in messages:
            kind = channel if channel == "tasks" else message["type"]
            if kind in names:
                times.hear("bridge", message["task_id"], names[kind])


async def hear_socket(times: Times, ready: asyncio.Event) -> None:
    """Listen to Prefect's websocket."""
    from prefect.events.clients import get_events_subscriber
    from prefect.events.filters import EventFilter, EventNameFilter

    async with get_events_subscriber(filter=EventFilter(event=EventNameFilter(prefix=["prefect.flow-run."]))) as events:
        ready.set()
        async for event in events:
            tags = [
                r.id.removeprefix("prefect.tag.") for r in event.related if r.id.startswith("prefect.tag.mloc-task:")
            ]
            state = event.event.rsplit(".", 1)[-1]
            if tags and state in STATES:
                times.hear("websocket", tags[0].removeprefix("mloc-task:"), state)


async def change(url: str, tasks: list[str], times: Times, pause: float) -> None:
    """Take one run for each task through its states."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        flow = (await http.post("/flows/", json={"name": "benchmark"})).json()["id"]

        async def step(task: str, state: str, path: str, body: dict) -> dict:
            times.asked[task, state] = time.perf_counter()
            answer = await http.post(path, json=body)
            times.answered[task, state] = time.perf_counter()
            answer.raise_for_status()
            await asyncio.sleep(pause)
            return answer.json()

        for task in tasks:
            tags = ["mloc", f"mloc-task:{task}", "mloc-type:echo"]
            body = {"flow_id": flow, "tags": tags, "state": {"type": "PENDING"}}
            run = (await step(task, "Pending", "/flow_runs/", body))["id"]
            for state in ("Running", "Completed"):
                body = {"state": {"type": state.upper(), "name": state}, "force": True}
                await step(task, state, f"/flow_runs/{run}/set_state", body)


async def measure(url: str, store_url: str, log: Path, runs: int, pause: float) -> Times:
    """Make the changes and listen."""
    stores, times = open_stores(store_url), Times()
    ready = [asyncio.Event(), asyncio.Event()]
    listeners = [
        asyncio.create_task(hear_topics(stores, times, ready[0])),
        asyncio.create_task(hear_socket(times, ready[1])),
    ]
    try:
        for event in ready:
            await asyncio.wait_for(event.wait(), 30)
        while "is active" not in log.read_text():
            await asyncio.sleep(0.05)
        warm, tasks = ([str(uuid4()) for _ in range(count)] for count in (3, runs))
        await stores.tasks.create([record(task) for task in (*warm, *tasks)])  # of no submission: nobody runs them
        await asyncio.sleep(2)
        await change(url, warm, Times(), pause)
        await change(url, tasks, times, pause)
        await asyncio.sleep(2)
    finally:
        for listener in listeners:
            listener.cancel()
        await asyncio.gather(*listeners, return_exceptions=True)
        await stores.close()
    keep = set(times.asked)
    times.heard = {arm: {k: at for k, at in heard.items() if k in keep} for arm, heard in times.heard.items()}
    return times


def row(times: Times, arm: str, state: str | None) -> str:
    """Return one line of the table."""
    wanted = [k for k in times.answered if state in {None, k[1]}]
    late, whole = (times.milliseconds(arm, state, since) for since in (times.answered, times.asked))
    missed = len(wanted) - len(late)

    def at(values: list[float], share: float) -> str:
        return f"{values[min(int(share * len(values)), len(values) - 1)]:8.1f}" if values else "       -"

    return (
        f"{arm:<10} {state or 'all':<10} {len(late):>5} {missed:>6}"
        f" {at(late, 0.5)} {at(late, 0.99)} {at(whole, 0.5)} {at(whole, 0.99)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="10 runs instead of 400")
    parser.add_argument("--runs", type=int)
    parser.add_argument("--pause", type=float, default=0.03, help="seconds between two changes")
    given = parser.parse_args()
    runs = given.runs or (10 if given.quick else 400)
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "MLOC_")) or name == "REDIS_URL"]:
        del os.environ[name]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ |= {"MLOC_HOME": folder, "PREFECT_HOME": f"{folder}/client"}
        log = home / "bridge.log"
        with embedded_valkey(home, port=PORT + 1) as valkey:
            private = Private(messaging_url=valkey.url(1), docket_url=valkey.url(2))
            with embedded_server(home, port=PORT, private=private) as url:
                more = {"REDIS_URL": valkey.url(0), "PREFECT_REDIS_MESSAGING_URL": valkey.url(1)}
                with bridge_process(environment(home, url, **more), log), temporary_settings({PREFECT_API_URL: url}):
                    times = asyncio.run(measure(url, valkey.url(0), log, runs, given.pause))
    print(f"# {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; one run of this script")
    print(f"# {runs} runs, {3 * runs} state changes, {given.pause * 1e3:.0f} ms apart; milliseconds")
    print("                                   from the answer   from the request")
    print(f"{'arm':<10} {'change to':<10} {'heard':>5} {'missed':>6} {'p50':>8} {'p99':>8} {'p50':>8} {'p99':>8}")
    for arm in ARMS:
        for state in (*STATES, None):
            print(row(times, arm, state))
    late = times.milliseconds("bridge", None, times.answered)
    p99 = late[min(int(0.99 * len(late)), len(late) - 1)]
    print(f"bridge p99 from the answer: {p99:.1f} ms (target: at most {TARGET_P99_MS}); heard twice: {times.twice}")


if __name__ == "__main__":
    main()
