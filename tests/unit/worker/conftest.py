"""What the tests of a worker share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mloc_prefect.execution.hosts import MemoryHosts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

from tests.support.claim_desk import Desk


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with MemoryHosts() as hosts:
        found = Desk(tmp_path, hosts)
        yield found
        await found.claims.close()
