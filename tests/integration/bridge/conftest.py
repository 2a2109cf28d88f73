"""A site for each file, and what its tests hear and read."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from mloc_prefect.prefect_ext.server.embedded import EmbeddedServer
from mloc_prefect.prefect_ext.server.main import Private
from mloc_prefect.store.backends import open_stores
from tests.support.bridge_site import Site
from tests.support.bridging import bridge_process, hearing
from tests.support.patience import START_SECONDS
from tests.support.server import prepare_home, start
from tests.support.valkey import embedded_valkey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from mloc_prefect.store.backends import Stores
    from tests.support.bridging import Heard


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Site]:
    """Servers on ports of the file's own: a server that starts again must find its port free."""
    home, port = tmp_path_factory.mktemp("site"), request.module.PORT
    with embedded_valkey(home, port=port + 2000) as valkey:
        prepare_home(home)
        private = Private(messaging_url=valkey.url(1), docket_url=valkey.url(2))
        server = EmbeddedServer(home, port, private=private)
        try:
            yield Site(home, valkey, server, start(server).api_url)
        finally:
            APILogWorker.drain_all(timeout=5)
            EventsWorker.drain_all(timeout=5)
            server.stop_now()


@pytest.fixture(scope="module")
def api(site: Site) -> Iterator[str]:
    with temporary_settings({PREFECT_API_URL: site.url}):
        yield site.url


@pytest.fixture(scope="module")
def bridge(site: Site) -> Iterator[None]:
    log = site.home / "bridge.log"
    with bridge_process(site.streaming, log):
        deadline = time.monotonic() + START_SECONDS
        while "is active" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield


@pytest.fixture
async def stores(site: Site) -> AsyncIterator[Stores]:
    found = open_stores(site.valkey.url(0))
    yield found
    await found.close()


@pytest.fixture
async def heard(stores: Stores) -> AsyncIterator[Heard]:
    async with hearing(stores) as heard:
        yield heard


@pytest.fixture(autouse=True)
def _as_on_the_site(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOC_HOME", str(site.home))
    monkeypatch.setenv("MLOC_RESULTS_DIR", str(site.home / "results"))
    monkeypatch.setenv("MLOC_RETRY_BASE_DELAY", "0")
    monkeypatch.setenv("REDIS_URL", site.valkey.url(0))
