"""The private attributes of Prefect's worker that ours reads and sets, and the signal handler of its engines.

`tests/unit/prefect_ext/test_prefect_contract.py` checks each of them against the installed Prefect, so that an upgrade
that moves one fails there and not for a user.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prefect import flow_engine

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from uuid import UUID

    from prefect.workers.base import BaseWorker

    Worker = BaseWorker[Any, Any, Any]


@contextlib.contextmanager
def signals_left_alone() -> Iterator[None]:
    """Keep Prefect's engines from taking SIGTERM for themselves while a flow runs.

    That is right for a process of one run, but here the signal means the worker, and would end its loop anywhere.
    """
    stock = {"capture_sigterm": vars(flow_engine)["capture_sigterm"]}
    vars(flow_engine).update(capture_sigterm=contextlib.nullcontext)
    try:
        yield
    finally:
        vars(flow_engine).update(stock)


def is_synced(worker: Worker) -> bool:
    """Return whether a worker knows its pool by now."""
    return worker._has_successfully_synced


def being_submitted(worker: Worker) -> Collection[UUID]:
    """Return the runs that a worker has taken from a poll and not started yet: a view that moves."""
    return worker._submitting_flow_run_ids


def not_submitted(worker: Worker, flow_run_id: UUID, *, runs: bool) -> None:
    """Let a worker forget a run that it was submitting, whatever came of it; a second time nothing happens.

    Args:
        worker: The worker.
        flow_run_id: The run.
        runs: It runs here, and keeps its slot.
    """
    worker._submitting_flow_run_ids.discard(flow_run_id)
    if worker._cancelling_observer is not None:
        worker._cancelling_observer.remove_in_flight_flow_run_id(flow_run_id)
    if not runs:
        worker._release_limit_slot(flow_run_id)


def note_poll(worker: Worker) -> None:
    """Report to the health check of a worker that it polls."""
    worker._last_polled_time = datetime.now(UTC)


@contextlib.contextmanager
def without_limit(worker: Worker) -> Iterator[None]:
    """Let a worker submit runs that take no slot of its limit; for the length of a block without a pause."""
    limiter, worker._limiter = worker._limiter, None
    try:
        yield
    finally:
        worker._limiter = limiter
