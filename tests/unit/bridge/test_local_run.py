"""The records of a run of `mloc run`."""

from __future__ import annotations

import asyncio
import time

from mloc_prefect.bridge.local_run import attend
from mloc_prefect.errors import StoreError
from tests.support.bridging import (
    BridgeBench,
    running,
    until,
)


async def test_a_process_marks_its_run_as_attended_as_soon_as_it_has_one(monkeypatch):
    bench = BridgeBench()
    await bench.submitted()
    named: list[str] = []
    answers = [StoreError("away")]
    noted = bench.stores.tasks.attend

    async def sometimes(name, until):
        if answers:
            raise answers.pop()
        await noted(name, until)

    monkeypatch.setattr(bench.stores.tasks, "attend", sometimes)
    async with running(attend(bench.stores.tasks, lambda: named[0] if named else None, every=0.001)):
        await asyncio.sleep(0.01)
        named.append("s1")

        async def is_attended() -> bool:
            return ((await bench.stores.tasks.submission("s1")).attended_until or 0) > time.time() + 60

        await until(is_attended)
