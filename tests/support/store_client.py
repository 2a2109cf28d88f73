"""A process that uses the store: `python -m tests.support.store_client URL NAME JOB`; prints one JSON line.

`steps`: takes 100 tasks through the same transitions as all other processes; prints the transitions that it made.
`keys`: submits under 100 idempotency keys that all other processes use too; prints the submission of each.
`journal`: reads from the journal until it is empty; prints the submissions.
"""

from __future__ import annotations

import asyncio
import json
import sys
from uuid import uuid4

from mloc_prefect.store.backends import Stores, open_stores
from mloc_prefect.store.interfaces import TASK_EVENTS
from mloc_prefect.store.states import Phase, StatusMark
from tests.support.records import submit

TASKS = [f"t{number}" for number in range(100)]
MARKS = [
    StatusMark(1, Phase.DISPATCHED),
    StatusMark(1, Phase.STARTED),
    StatusMark(2, Phase.WAITING),
    StatusMark(2, Phase.DONE),
]


async def steps(stores: Stores, name: str) -> list[str]:
    own = []
    for task_id in TASKS:
        for mark in MARKS:
            label = f"{task_id} {mark}"
            if await stores.tasks.transition(task_id, mark, {"error": name}, [(TASK_EVENTS, {"step": label})]):
                own.append(label)
    return own


async def keys(stores: Stores, name: str) -> dict[str, str]:
    del name
    got = {}
    for key in TASKS:
        made = await submit(stores.tasks, str(uuid4()), str(uuid4()), idempotency_key=key, digest="same")
        got[key] = made.submission_id
    return got


async def journal(stores: Stores, name: str) -> list[str]:
    taken = []
    while entries := await stores.journal.read(name, block_ms=500, count=3):
        for entry in entries:
            taken.append(entry.submission_id)
            await stores.journal.ack(entry)
    return taken


async def main() -> None:
    url, name, job = sys.argv[1:]
    stores = open_stores(url)
    await stores.check()
    print("ready", flush=True)
    sys.stdin.readline()  # all processes start together
    print(json.dumps(await {"steps": steps, "keys": keys, "journal": journal}[job](stores, name)), flush=True)
    await stores.close()


if __name__ == "__main__":
    asyncio.run(main())
