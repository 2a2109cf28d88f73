"""Registers our block types with the current Prefect API and creates the sample block `mloc-artifact-store/local`.

    python blocks/register.py [URL]

`prefect block register -m mloc_prefect` does the first half alone.
"""

from __future__ import annotations

import asyncio
import sys

from prefect.exceptions import ObjectNotFound

from mloc_prefect import MlocArtifactStore
from mloc_prefect.settings import get_settings

SAMPLE = "local"


async def register(url: str | None = None) -> str:
    """Register the types and save the sample block unless there is one; returns its slug.

    Args:
        url: Where the sample block keeps things; default: the results root of the settings.
    """
    await MlocArtifactStore.aregister_type_and_schema()
    try:
        await MlocArtifactStore.aload(SAMPLE)
    except ValueError as error:
        if not isinstance(error.__cause__, ObjectNotFound):
            raise
        await MlocArtifactStore(url=url or str(get_settings().results_root)).asave(SAMPLE)
    return f"mloc-artifact-store/{SAMPLE}"


if __name__ == "__main__":
    print(asyncio.run(register(*sys.argv[1:2])))
