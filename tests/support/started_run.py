"""A process that runs a given flow run, as a worker's child does: FLOW-RUN-ID SPEC-FILE."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow_async

from mloc_prefect.flow.build import build_flow
from mloc_prefect.flow.dispatcher import local_dispatcher, use_dispatcher
from mloc_prefect.plan import check
from mloc_prefect.settings import get_settings
from tests.support.flows import Holding


async def main(flow_run_id: str, spec: str) -> None:
    plan, diagnostics = check(Path(spec).read_text())
    assert plan is not None, diagnostics
    async with get_client() as client:
        flow_run = await client.read_flow_run(flow_run_id)
    async with local_dispatcher(get_settings()) as local:
        with use_dispatcher(Holding(local)):  # type: ignore[arg-type]  # wraps the dispatcher of this machine
            await run_flow_async(build_flow(plan), flow_run=flow_run, return_type="state")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
