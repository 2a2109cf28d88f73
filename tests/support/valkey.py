"""A real embedded Valkey for tests."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mloc_prefect.services.valkey import EmbeddedValkey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mloc_prefect.services.valkey import ValkeyAddress


@contextmanager
def embedded_valkey(home: Path, *, port: int = 26379, fsync="everysec") -> Iterator[EmbeddedValkey]:
    """Run a Valkey below `home` (a fresh `MLOC_HOME`) until the block ends."""
    server = EmbeddedValkey(home, port, fsync)
    try:
        start(server)
        yield server
    finally:
        server.stop_now()


def start(server: EmbeddedValkey, *, seconds: float = 30.0) -> ValkeyAddress:
    """Start `server` and wait for it, without an event loop."""
    server.launch()
    deadline = time.monotonic() + seconds
    while (address := server.poll()) is None:
        assert time.monotonic() < deadline, "the embedded Valkey did not start"
        time.sleep(0.02)
    return address
