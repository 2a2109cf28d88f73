"""The store behind Sentinels and behind TLS: it follows a failover by itself, and trusts only what it should."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.errors import ConflictError, StoreError
from mloc_prefect.store.backends import open_stores
from mloc_prefect.store.interfaces import TASK_EVENTS
from mloc_prefect.store.redis.redis_client import CONNECTIONS
from tests.support.counts import count
from tests.support.patience import FACT_SECONDS
from tests.support.records import submit
from tests.support.valkey import embedded_valkey
from tests.support.valkey_sentinel import Failover, TlsFront, running_failover

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.store.backends import Stores

PORT = 26680
FAILOVERS = count("redis-failover", 1, 10)

pytestmark = pytest.mark.counted


@pytest.fixture(scope="module")
def failover(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Failover]:
    with running_failover(tmp_path_factory.mktemp("failover"), PORT) as found:
        yield found


async def until_accepted(stores: Stores, name: str) -> None:
    """Submit again and again, as a client does that gets 503."""
    deadline = time.monotonic() + FACT_SECONDS
    while True:
        try:
            await submit(stores.tasks, name, f"{name}-task")
            return
        except ConflictError:  # it was stored, and only its answer lost
            return
        except StoreError as error:
            assert time.monotonic() < deadline, error
            await asyncio.sleep(0.1)


async def test_connections_follow_the_primary(failover: Failover) -> None:
    stores = open_stores(failover.url)
    try:
        async with stores.publisher.listen(TASK_EVENTS) as heard:
            del heard
            for number in range(FAILOVERS):
                before = failover.primary()
                await until_accepted(stores, f"before-{number}")
                # Replication is asynchronous; what has not reached the replica is lost with the primary.
                failover.ask(before).wait(1, 5000)
                failover.kill(before)
                await until_accepted(stores, f"after-{number}")
                assert failover.primary() != before
                assert (await stores.tasks.get(f"before-{number}-task")) is not None
                failover.start_server(before)
                failover.wait(lambda before=before: failover.is_replica(before))
    finally:
        await stores.close()


async def test_many_commands_share_the_connections(failover: Failover) -> None:
    stores = open_stores(failover.url)
    try:
        await asyncio.gather(*(stores.check() for _ in range(5 * CONNECTIONS)))
    finally:
        await stores.close()


async def test_no_sentinel_answers(failover: Failover) -> None:
    stores = open_stores("redis+sentinel://:secret@127.0.0.1:1/mymaster/0")
    with pytest.raises(StoreError, match=r"Redis at mymaster behind 127\.0\.0\.1:1 cannot be reached") as caught:
        await stores.check()
    assert "secret" not in str(caught.value)
    await stores.close()
    wrong = open_stores(failover.url.replace("mymaster", "other"))
    with pytest.raises(StoreError, match="No master found for 'other'"):
        await wrong.check()
    await wrong.close()


@pytest.mark.parametrize("how", ["option", "variable"])
async def test_tls(tmp_path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with embedded_valkey(tmp_path, port=PORT + 10) as server:
        port = int(server.url().rpartition(":")[2].partition("/")[0])
        front = TlsFront(tmp_path, port)
        url = server.url().replace("redis://", "rediss://").replace(f":{port}/", f":{front.port}/")
        try:
            untrusted = open_stores(url)
            with pytest.raises(StoreError, match="certificate verify failed"):
                await untrusted.check()
            await untrusted.close()
            if how == "option":
                url += f"?ssl_ca_certs={front.ca}"
            else:
                monkeypatch.setenv("SSL_CERT_FILE", str(front.ca))
            stores = open_stores(url)
            await stores.check()
            await submit(stores.tasks, "over-tls", "t1")
            await stores.close()
        finally:
            front.close()
