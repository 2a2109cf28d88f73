"""Main of a process that owns a host with grandchildren and waits to be killed: `owner.py DIR`."""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import time
from pathlib import Path

from mloc_prefect.execution.hosts import HostPool
from tests.support.hosts import TROUBLE, Runner, host_spec, run_dir_of, trouble_request


async def main(root: Path, *, fork: bool) -> None:
    async with HostPool(run_dir_of(root), idle_seconds=60, start_seconds=30) as pool:
        request = trouble_request(
            root,
            ["note_pid", str(root / "host")],
            ["start_grandchildren", str(root / "grandchildren")],
        )
        await Runner(pool, root)(request, host_spec(TROUBLE))
        if fork:  # a forked child inherits all open descriptors, including the lifeline
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(300,))
            child.start()
            (root / "forked").write_text(str(child.pid))
        (root / "ready").touch()
        await asyncio.sleep(300)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), fork="fork" in sys.argv))
