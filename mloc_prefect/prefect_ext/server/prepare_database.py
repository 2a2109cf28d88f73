"""Makes or upgrades the database of Prefect servers that share one: `python -m` this, once, before they start.

Each server does this at its own start unless it is told not to. Servers that start together on a new database then make
the same tables and block types at the same time, and all but one of them end with an error.
"""

from __future__ import annotations

import asyncio


async def prepare_database() -> None:
    """Run the migrations, then register the block types, in the database that Prefect's settings name."""
    from prefect.server.database import provide_database_interface
    from prefect.server.models.block_registration import run_block_auto_registration

    db = provide_database_interface()
    await db.create_db()
    async with await db.session() as session:
        await run_block_auto_registration(session=session)


if __name__ == "__main__":
    asyncio.run(prepare_database())
