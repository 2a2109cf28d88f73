"""What we rely on in Prefect beyond its public API; an upgrade that moves any of it must fail here."""

from __future__ import annotations

import asyncio
import inspect
import signal
from types import SimpleNamespace
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
import pytest
from prefect import flow, flow_engine
from prefect._flow_run_suspension import register_flow_run_suspension_request
from prefect._internal.observers import FlowRunCancellingObserver
from prefect.client.orchestration import get_client
from prefect.context import AsyncClientContext
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.base import BaseWorker
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from mloc_prefect.prefect_ext.shared_client import SharedClient
from mloc_prefect.prefect_ext.worker_internals import (
    being_submitted,
    is_synced,
    not_submitted,
    note_poll,
    signals_left_alone,
    without_limit,
)
from mloc_prefect.worker.in_loop_runs import own_flow
from mloc_prefect.worker.worker import MlocGpuWorker

if TYPE_CHECKING:
    from contextvars import ContextVar

    from mloc_prefect.prefect_ext.server.sqlite import SerialSqlite

# --- SQLite (the server's modules take two seconds to import: not where tests are collected) ------------------------


def test_database_hook_is_used_by_the_server():
    """`set_database_config` must reach what every request gets."""
    from prefect.server.database import dependencies

    from mloc_prefect.prefect_ext.server.sqlite import install

    before = dependencies.MODELS_DEPENDENCIES["database_config"]
    try:
        config = install("sqlite+aiosqlite:////nowhere/x.db")
        assert dependencies.provide_database_interface().database_config is config
    finally:
        dependencies.set_database_config(before)


def test_begin_mode_is_where_we_expect_it():
    from prefect.server.database.configurations import AioSqliteConfiguration

    signature = inspect.signature(AioSqliteConfiguration.begin_transaction)
    assert list(signature.parameters) == ["self", "session", "with_for_update"]
    assert "SQLITE_BEGIN_MODE" in inspect.unwrap(AioSqliteConfiguration.begin_transaction).__code__.co_names


class Sessions:
    """Sessions on one throw-away database, and a log of what happened in which order."""

    def __init__(self, config: SerialSqlite, engine, mode: ContextVar) -> None:
        self.config, self.engine, self.mode, self.log = config, engine, mode, []

    async def write(self, name: str, *, inside=None, seconds: float = 0.01) -> None:
        async with AsyncSession(self.engine) as session, self.config.begin_transaction(session):
            self.log.append(f"{name} {self.mode.get()}")
            if inside is not None:
                await inside()
            await asyncio.sleep(seconds)
            self.log.append(f"{name} end")


@pytest.fixture
async def sessions():
    from prefect.server.database.configurations import SQLITE_BEGIN_MODE

    from mloc_prefect.prefect_ext.server.sqlite import SerialSqlite

    engine = create_async_engine("sqlite+aiosqlite://")
    yield Sessions(SerialSqlite(connection_url="sqlite+aiosqlite://"), engine, SQLITE_BEGIN_MODE)
    await engine.dispose()


async def test_writes_take_turns_and_begin_immediate(sessions):
    await asyncio.gather(*(sessions.write(str(n)) for n in range(5)))
    assert sessions.log == [entry for n in range(5) for entry in (f"{n} IMMEDIATE", f"{n} end")]


async def test_a_transaction_inside_another_does_not_wait_for_it(sessions):
    await asyncio.wait_for(sessions.write("outer", inside=lambda: sessions.write("inner")), 5)
    assert sessions.log == ["outer IMMEDIATE", "inner DEFERRED", "inner end", "outer end"]


async def test_a_task_left_behind_by_a_transaction_queues_again(sessions):
    left: list[asyncio.Task] = []

    async def leave() -> None:
        async def later() -> None:
            while "other IMMEDIATE" not in sessions.log:
                await asyncio.sleep(0.001)
            await sessions.write("later")

        left.append(asyncio.create_task(later()))

    await sessions.write("outer", inside=leave)
    await asyncio.gather(sessions.write("other", seconds=0.15), *left)
    assert sessions.log[2:] == ["other IMMEDIATE", "other end", "later IMMEDIATE", "later end"]


# --- the engine -------------------------------------------------------------------------------------------------------


def test_signal_handler_is_looked_up_where_we_replace_it():
    initialize = inspect.unwrap(flow_engine.AsyncFlowRunEngine.initialize_run)
    assert "capture_sigterm" in initialize.__code__.co_names


def test_signals_are_left_alone_and_given_back():
    before, stock = signal.getsignal(signal.SIGTERM), flow_engine.capture_sigterm
    with signals_left_alone(), flow_engine.capture_sigterm():
        assert signal.getsignal(signal.SIGTERM) is before
    assert flow_engine.capture_sigterm is stock
    with flow_engine.capture_sigterm():
        assert signal.getsignal(signal.SIGTERM) is not before


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (flow_engine.AsyncFlowRunEngine, "handle_crash", ["self", "exc"]),
        (flow_engine.AsyncFlowRunEngine, "handle_cancellation", ["self", "exc"]),
        (flow_engine.AsyncFlowRunEngine, "start", ["self"]),
        (flow_engine.AsyncFlowRunEngine, "run_context", ["self"]),
        (flow_engine.AsyncFlowRunEngine, "call_flow_fn", ["self"]),
        (flow_engine.AsyncFlowRunEngine, "is_running", ["self"]),
        (flow_engine.AsyncFlowRunEngine, "setup_flow_run_suspension_request", ["self"]),
        (flow_engine.AsyncFlowRunEngine, "_get_flow_run_suspension_request", ["self"]),
        (flow_engine, "_flow_parameters", ["flow", "flow_run", "parameters"]),
        (flow_engine.AsyncFlowRunEngine, "set_state", ["self", "state", "force"]),
        (BaseWorker, "setup", ["self"]),
        (BaseWorker, "teardown", ["self", "exc_info"]),
        (BaseWorker, "get_and_submit_flow_runs", ["self"]),
        (BaseWorker, "_submit_scheduled_flow_runs", ["self", "flow_run_response"]),
        (BaseWorker, "_submit_run", ["self", "flow_run"]),
        (BaseWorker, "_submit_run_and_capture_errors", ["self", "flow_run", "task_status"]),
        (BaseWorker, "_release_limit_slot", ["self", "flow_run_id"]),
        (FlowRunCancellingObserver, "remove_in_flight_flow_run_id", ["self", "flow_run_id"]),
        (BaseWorker, "_propose_pending_state", ["self", "flow_run"]),
        (BaseWorker, "_propose_submitting_state", ["self", "flow_run"]),
        (BaseWorker, "_propose_crashed_state", ["self", "flow_run", "message", "client"]),
        (BaseWorker, "_give_worker_labels_to_flow_run", ["self", "flow_run_id"]),
        (ProcessWorker, "run", ["self", "flow_run", "configuration", "task_status"]),
        (
            ProcessJobConfiguration,
            "prepare_for_flow_run",
            ["self", "flow_run", "deployment", "flow", "work_pool", "worker_name", "worker_id"],
        ),
    ],
)
def test_signatures(owner, name, parameters):
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters


def test_suspension_requests_are_registered_as_the_stock_engine_does():
    assert list(inspect.signature(register_flow_run_suspension_request).parameters)[:2] == [
        "flow_run_id",
        "suspension_request",
    ]
    assert flow_engine.register_flow_run_suspension_request is register_flow_run_suspension_request


def test_the_engine_uses_the_methods_that_we_replace():
    """`handle_crash` on cancellation, and the suspension request on start, or our versions do nothing."""
    initialize = inspect.unwrap(flow_engine.AsyncFlowRunEngine.initialize_run)
    start = inspect.unwrap(flow_engine.AsyncFlowRunEngine.start)
    assert "handle_crash" in initialize.__code__.co_names
    assert "setup_flow_run_suspension_request" in start.__code__.co_names


async def test_the_shared_client_is_what_the_engine_and_callers_without_settings_get():
    assert "_httpx_settings" in inspect.getsource(get_client)
    with temporary_settings({PREFECT_API_URL: "http://test/api"}):
        async with SharedClient() as shared:
            with shared.in_force():
                assert get_client() is shared.client
                async with AsyncClientContext.get_or_create() as context:
                    assert context.client is shared.client
            assert AsyncClientContext.get() is None


@pytest.fixture
def stock() -> ProcessWorker:
    return ProcessWorker(work_pool_name="gpu")


@pytest.mark.parametrize(
    "name",
    [
        "_cancelling_observer",
        "_has_successfully_synced",
        "_last_polled_time",
        "_logger",
        "_limiter",
        "_prefetch_seconds",
        "_runs_task_group",
        "_submitting_flow_run_ids",
        "_work_pool",
        "_work_pool_name",
        "_work_queues",
    ],
)
def test_the_stock_worker_has_what_we_read_and_set(stock: ProcessWorker, name: str):
    """And reads it itself: an attribute that only we know would say nothing."""
    assert hasattr(stock, name)
    assert f"self.{name}" in inspect.getsource(BaseWorker).partition("async def start")[2]


def test_a_worker_is_read_and_set_through_one_module(stock: ProcessWorker):
    assert not is_synced(stock)
    assert list(being_submitted(stock)) == []
    before, stock._limiter = stock._last_polled_time, anyio.CapacityLimiter(1)
    note_poll(stock)
    assert stock._last_polled_time > before
    with pytest.raises(KeyError), without_limit(stock):
        assert stock._limiter is None
        raise KeyError
    assert stock._limiter is not None


@pytest.mark.parametrize("runs", [True, False])
async def test_what_is_no_longer_submitted_is_forgotten_everywhere_and_twice(stock: ProcessWorker, *, runs: bool):
    run, removed = uuid4(), []
    stock._limiter = anyio.CapacityLimiter(1)
    stock._limiter.acquire_on_behalf_of_nowait(run)
    stock._submitting_flow_run_ids.add(run)
    stock._cancelling_observer = SimpleNamespace(remove_in_flight_flow_run_id=removed.append)
    for _ in range(2):
        not_submitted(stock, run, runs=runs)
    assert list(being_submitted(stock)) == []
    assert removed == [run, run]
    assert stock._limiter.borrowed_tokens == runs


def test_the_cancelling_observer_forgets_twice():
    observer = FlowRunCancellingObserver(on_cancelling=lambda _: None)
    run = uuid4()
    observer.add_in_flight_flow_run_id(run)
    for _ in range(2):
        observer.remove_in_flight_flow_run_id(run)


# --- the worker -------------------------------------------------------------------------------------------------------


def test_worker_type_is_registered():
    import mloc_prefect.collection as collection

    assert BaseWorker.get_worker_class_from_type("mloc-gpu") is collection.MlocGpuWorker


@pytest.mark.parametrize("name", ["_display_name", "_description", "_documentation_url", "_logo_url"])
def test_what_the_worker_type_shows_is_set_by_the_stock_type_too(name: str):
    assert isinstance(getattr(ProcessWorker, name), str)


def test_job_template_has_a_place_for_every_variable():
    template = MlocGpuWorker.get_default_base_job_template()
    assert {"gpu_count", "gpu_type", "gpu_memory", "env", "command"} <= set(template["variables"]["properties"])
    assert template["job_configuration"]["gpu_count"] == "{{ gpu_count }}"


def deployment(entrypoint: str | None, pull_steps: list | None = None) -> SimpleNamespace:
    return SimpleNamespace(name="d", entrypoint=entrypoint, pull_steps=pull_steps)


@flow
async def some_async_flow() -> None: ...


@flow
def some_sync_flow() -> None: ...


@pytest.mark.parametrize(
    ("entrypoint", "pull_steps"),
    [
        (None, None),
        ("flows/run_workflow.py:run_workflow", None),
        ("tests.unit.prefect_ext.test_prefect_contract.some_async_flow", None),
        ("mloc_prefect.fake.some_async_flow", [{"prefect.deployments.steps.git_clone": {}}]),
        ("mloc_prefect.fake.some_sync_flow", None),
        ("mloc_prefect.fake.no_such_flow", None),
        ("mloc_prefect.no_such_module.flow", None),
        ("mloc_prefectures.flows.flow", None),
    ],
)
def test_every_other_flow_gets_a_process(entrypoint, pull_steps, monkeypatch):
    fake = SimpleNamespace(some_async_flow=some_async_flow, some_sync_flow=some_sync_flow)
    monkeypatch.setitem(__import__("sys").modules, "mloc_prefect.fake", fake)
    assert own_flow(deployment(entrypoint, pull_steps)) is None
    assert own_flow(deployment("mloc_prefect.fake.some_async_flow")) is some_async_flow
