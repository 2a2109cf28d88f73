"""What the tests of commands share."""

from __future__ import annotations

import pytest

from mloc_prefect.client.sync_client import MlocClient
from tests.support.client_endpoint import Fake, answering


@pytest.fixture
def fake(monkeypatch):
    found = Fake()
    monkeypatch.setattr(MlocClient, "configured", classmethod(lambda *_: answering(found, "s3cret")))
    return found
