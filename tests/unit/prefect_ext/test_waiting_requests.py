"""Requests of stock code that wait for the server: which there are, and that they do."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prefect.client.base import PrefectHttpxAsyncClient
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import PrefectHTTPStatusError
from prefect.flow_engine import AsyncFlowRunEngine
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.workers.base import BaseJobConfiguration, BaseWorker

from mloc_prefect.prefect_ext import client_retries, retry
from mloc_prefect.prefect_ext.waiting_requests import STOCK_REQUESTS, requests_fail, requests_wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# --- the table --------------------------------------------------------------------------------------------------------

_SUBMITTING = ("_submit_run", "_submit_run_and_capture_errors")


def tree_of(owner: type, name: str) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(getattr(owner, name)))))


def is_client(node: ast.AST) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name in {"client", "_client"}


def requests_of(tree: ast.AST) -> set[str]:
    """Return the methods of a client that are called, `propose_state`, and `client` where a call is handed one."""
    found: set[str] = set()
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = call.func
        if isinstance(function, ast.Attribute) and is_client(function.value):
            found.add(function.attr)
        if isinstance(function, ast.Name) and function.id == "propose_state":
            found.add(function.id)
        elif any(is_client(value) for value in (*call.args, *(k.value for k in call.keywords))):
            found.add("client")
    return found


def called_by(owner: type, *names: str) -> set[str]:
    """Return the own methods that some methods call, and those that these call, with themselves."""
    seen, left = set[str](), list(names)
    while left:
        name = left.pop()
        if name in seen or not inspect.isfunction(inspect.unwrap(getattr(owner, name, None))):
            continue
        seen.add(name)
        left += [
            node.attr
            for node in ast.walk(tree_of(owner, name))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
        ]
    return seen


def stock_requests() -> dict[str, set[str]]:
    """Return what the stock code asks between the claim of a run and its end."""
    methods = [(AsyncFlowRunEngine, name) for name, _ in inspect.getmembers(AsyncFlowRunEngine, callable)]
    methods = [(owner, name) for owner, name in methods if name in vars(AsyncFlowRunEngine) and name[:2] != "__"]
    methods += [(BaseWorker, name) for name in called_by(BaseWorker, *_SUBMITTING)]
    methods += [(BaseJobConfiguration, name) for name in ("resolve_for_flow_run", "from_template_and_values")]
    found = {f"{owner.__name__}.{name}": requests_of(tree_of(owner, name)) for owner, name in methods}
    return {name: asked for name, asked in found.items() if asked}


def test_the_table_lists_each_request_of_the_installed_prefect() -> None:
    assert {name: set(rows) for name, rows in STOCK_REQUESTS.items()} == stock_requests()


# --- waiting ----------------------------------------------------------------------------------------------------------

FAULTS: dict[str, Callable[[httpx.Request], httpx.Response]] = {}


def fault(name: str) -> Callable[[Callable[[httpx.Request], httpx.Response]], None]:
    return lambda answer: FAULTS.__setitem__(name, answer)


for status in (500, 502, 503, 504, 429):
    FAULTS[str(status)] = lambda _request, status=status: httpx.Response(status)  # type: ignore[misc]


@fault("closed")
def _closed(request: httpx.Request) -> httpx.Response:
    raise httpx.RemoteProtocolError("Server disconnected without sending a response.", request=request)


@fault("refused")
def _refused(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("All connection attempts failed", request=request)


@fault("slow")
def _slow(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("", request=request)


class Server:
    """Meets each request with faults first."""

    def __init__(self) -> None:
        self.faults: list[Callable[[httpx.Request], httpx.Response]] = []
        self.asked: list[bytes] = []
        self.pauses: list[float] = []
        http = PrefectHttpxAsyncClient(transport=httpx.MockTransport(self.answer), base_url="http://test/api")
        self.client = PrefectClient("http://test/api")
        self.client._client = http

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.content)
        return self.faults.pop(0)(request) if self.faults else httpx.Response(200, json={"status": "ok"})

    async def ask(self) -> Any:
        return await self.client.request("POST", "/flow_runs/filter", json={"x": 1})

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    found = Server()
    monkeypatch.setattr(retry, "_sleep", found.sleep)
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        yield found


@pytest.mark.parametrize("name", FAULTS)
async def test_a_request_waits_through_each_kind_of_outage(server: Server, name: str) -> None:
    server.faults = [FAULTS[name]] * 3
    with requests_wait("a run", lambda: True):
        assert (await server.ask()).status_code == 200
    assert len(server.asked) == 4
    assert len(set(server.asked)) == 1, "repeated as it was: the server knows a transition by its id"


async def test_waits_are_in_steps_in_which_the_end_of_the_run_is_noticed(server: Server) -> None:
    wanted = [True] * 12
    server.faults = [FAULTS["refused"]] * 20
    with requests_wait("a run", lambda: bool(wanted and wanted.pop())), pytest.raises(httpx.ConnectError):
        await server.ask()
    assert set(server.pauses) == {1.0}
    assert len(server.asked) < 10


@pytest.mark.parametrize("status", [404, 409, 422])
async def test_a_refusal_is_an_answer(server: Server, status: int) -> None:
    server.faults = [lambda _request: httpx.Response(status)]
    with requests_wait("a run", lambda: True), pytest.raises(PrefectHTTPStatusError):
        await server.ask()
    assert len(server.asked) == 1


async def test_other_requests_of_the_process_and_displays_do_not_wait(server: Server) -> None:
    with requests_wait("a run", lambda: True):
        await server.ask()
        server.faults = [FAULTS["500"]]
        with requests_fail(), pytest.raises(PrefectHTTPStatusError):
            await server.ask()
    server.faults = [FAULTS["500"]]
    with pytest.raises(PrefectHTTPStatusError):
        await server.ask()
    assert server.pauses == []


async def test_a_request_that_is_not_to_wait_has_the_retries_of_the_client(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the claim of a run, in `mloc run` and at the end of a worker: no caller repeats it."""
    monkeypatch.setattr(client_retries, "_sleep", server.sleep)
    server.faults = [FAULTS["503"]] * 5
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 5}), requests_wait("a run", lambda: False):
        assert (await server.ask()).status_code == 200
    assert len(server.asked) == 6


async def test_a_server_in_maintenance_is_waited_for_however_long(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "_clock", iter(range(0, 100_000, 1_000)).__next__)
    server.faults = [lambda _request: httpx.Response(503, headers={"Prefect-Maintenance": "true"})] * 9
    with requests_wait("a run", lambda: True):
        assert (await server.ask()).status_code == 200


def test_every_method_of_the_client_sends_by_what_we_replace() -> None:
    assert isinstance(PrefectClient("http://test/api")._client, PrefectHttpxAsyncClient)
    assert "send" in vars(PrefectHttpxAsyncClient)
    assert list(inspect.signature(httpx.AsyncClient.send).parameters)[:2] == ["self", "request"]
