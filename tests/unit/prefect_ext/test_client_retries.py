"""Retries of Prefect's client: short waits, one request for callers that repeat it, the token of CSRF protection."""

from __future__ import annotations

import inspect
from collections import deque
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prefect.client.base import PrefectHttpxAsyncClient
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from mloc_prefect.prefect_ext import client_retries
from mloc_prefect.prefect_ext.client_retries import keep_retries_short, sent_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Server:
    """Answers requests with what is in `answers`, then with 200."""

    def __init__(self) -> None:
        self.answers: deque[httpx.Response | Exception] = deque()
        self.asked: list[tuple[str, str | None]] = []  # method, token: a request that is repeated is the same object
        self.pauses: list[float] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.method, request.headers.get("Prefect-Csrf-Token")))
        if request.url.path.endswith("/csrf-token"):
            return httpx.Response(
                200, json={"client": "c", "token": f"t{len(self.asked)}", "expiration": "2099-01-01T00:00:00Z"}
            )
        found = self.answers.popleft() if self.answers else httpx.Response(200)
        if isinstance(found, Exception):
            raise found
        return found

    def client(self, **options: Any) -> PrefectHttpxAsyncClient:
        return PrefectHttpxAsyncClient(transport=httpx.MockTransport(self.answer), base_url="http://t/api", **options)

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    found = Server()
    monkeypatch.setattr(PrefectHttpxAsyncClient, "_send_with_retry", PrefectHttpxAsyncClient._send_with_retry)
    monkeypatch.setattr(client_retries, "_sleep", found.sleep)
    keep_retries_short()
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 5}):
        yield found


@pytest.mark.parametrize("fault", [lambda: httpx.Response(503), lambda: httpx.ReadTimeout("")])
async def test_no_wait_is_long(server: Server, fault: Callable[[], Any]) -> None:
    server.answers.extend(fault() for _ in range(5))
    assert (await server.client().post("/x")).status_code == 200
    assert len(server.pauses) == 5
    assert max(server.pauses) < 6


async def test_retries_end(server: Server) -> None:
    server.answers.extend(httpx.Response(503) for _ in range(20))
    with pytest.raises(PrefectHTTPStatusError):
        await server.client().post("/x")
    assert len(server.asked) == 6


async def test_a_wait_that_the_server_asks_for_is_kept(server: Server) -> None:
    server.answers.append(httpx.Response(429, headers={"Retry-After": "60"}))
    await server.client().post("/x")
    assert 60 <= server.pauses[0] < 80


@pytest.mark.parametrize(
    ("asked", "most"), [("86400", 80), ("inf", 2), ("-5", 2), ("Fri, 01 Jan 2100 00:00:00 GMT", 80)]
)
async def test_no_server_stops_us_for_a_day(server: Server, asked: str, most: float) -> None:
    server.answers.append(httpx.Response(503, headers={"Retry-After": asked}))
    await server.client().post("/x")
    assert 0 < server.pauses[0] < most


async def test_answers_of_a_server_in_maintenance_are_not_counted(server: Server) -> None:
    server.answers.extend(httpx.Response(503, headers={"Prefect-Maintenance": "true"}) for _ in range(12))
    server.answers.extend(httpx.Response(503) for _ in range(5))
    assert (await server.client().post("/x")).status_code == 200
    assert len(server.asked) == 18


async def test_the_stock_worker_hears_of_maintenance_and_does_not_report_that_it_is_stuck(server: Server) -> None:
    record = pytest.importorskip("prefect._internal.server_maintenance", reason="newer versions of Prefect")
    server.answers.append(httpx.Response(503, headers={"Prefect-Maintenance": "true"}))
    await server.client().post("/x")
    ends = record.maintenance_backoff_ends_at()
    record.reset_maintenance_backoff()
    assert ends is not None


async def test_a_caller_that_repeats_it_gets_the_first_failure(server: Server) -> None:
    server.answers.append(httpx.Response(503))
    token = sent_once.set(True)
    try:
        with pytest.raises(PrefectHTTPStatusError):
            await server.client().post("/x")
    finally:
        sent_once.reset(token)
    assert server.pauses == []


async def test_an_old_token_is_replaced_at_once(server: Server) -> None:
    server.answers.append(httpx.Response(403, json={"detail": "Invalid CSRF token or client identifier."}))
    assert (await server.client(enable_csrf_support=True).post("/x")).status_code == 200
    assert [token for method, token in server.asked if method == "POST"] == ["t1", "t3"]
    assert server.pauses == []


def test_the_stock_method_still_takes_what_ours_takes() -> None:
    stock, ours = client_retries.STOCK, client_retries._send_with_retry
    assert list(inspect.signature(stock).parameters) == list(inspect.signature(ours).parameters)
