"""Requests of the stock engine and worker that wait while the Prefect server is away.

Between the claim of a run and its end, Prefect sends some requests itself. Its client repeats a few kinds of failures
for about a minute; then the stock code gives the run up, as crashed, though nothing is wrong with it. `requests_wait`
makes every request of a context wait instead, whoever sends it: no answer, or 408, 429 and 5xx. A request is repeated
as it was, so the server knows a change of state that it had accepted before the answer was lost. The client's own
retries do not apply then: their waits would come on top. They do apply to a request that is not to wait, as before the
claim of a run or at the end of its worker: nobody else would repeat it.

`STOCK_REQUESTS` lists what the stock code sends. A test compares it with the installed Prefect.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from prefect.client.base import PrefectHttpxAsyncClient

from mloc_prefect.prefect_ext.client_retries import keep_retries_short, sent_once
from mloc_prefect.prefect_ext.retry import until_answered

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Covered = Literal["waits", "unclaimed", "elsewhere"]
"""How a request meets an outage: it waits; the run is not claimed yet, so it stays scheduled or is put back (see
`worker.claims.pending`); or it is of a run that has no part in ours."""

STOCK_REQUESTS: Mapping[str, Mapping[str, Covered]] = {
    "BaseWorker._submit_run": {
        "read_deployment": "unclaimed",  # user flows only
        "update_flow_run": "waits",  # the process of the run; user flows only
    },
    "BaseWorker._submit_run_and_capture_errors": {"client": "waits"},  # to `resolve_for_flow_run`; user flows only
    "BaseWorker._propose_pending_state": {"propose_state": "unclaimed"},  # replaced by ours
    "BaseWorker._propose_submitting_state": {"propose_state": "elsewhere"},  # replaced by nothing
    "BaseWorker._propose_crashed_state": {"propose_state": "waits"},
    "BaseWorker._mark_flow_run_as_cancelled": {"set_flow_run_state": "unclaimed"},
    "BaseWorker._give_worker_labels_to_flow_run": {"update_flow_run_labels": "waits"},  # replaced by ours
    "BaseJobConfiguration.resolve_for_flow_run": {  # user flows only
        "read_deployment": "waits",
        "read_flow": "waits",
        "client": "waits",  # handed to `from_template_and_values`
    },
    "BaseJobConfiguration.from_template_and_values": {"client": "waits"},  # blocks and variables; user flows only
    "AsyncFlowRunEngine.initialize_run": {
        "update_flow_run": "waits",
        "client": "waits",  # handed to the telemetry, which may set labels
    },
    "AsyncFlowRunEngine.create_flow_run": {"create_flow_run": "waits", "client": "waits"},  # replaced by ours
    "AsyncFlowRunEngine.load_subflow_run": {"read_flow_runs": "waits"},
    "AsyncFlowRunEngine.begin_run": {"set_flow_run_name": "waits", "client": "waits"},
    "AsyncFlowRunEngine.setup_run_context": {
        "read_flow_run": "waits",
        "set_flow_run_name": "waits",
        "client": "waits",
    },
    "AsyncFlowRunEngine.set_state": {"propose_state": "waits"},
}
"""Method of the stock code -> what it asks of the client, and how that meets an outage."""


@dataclass(frozen=True, slots=True)
class _Patience:
    what: str
    wanted: Callable[[], bool]


_in_force: ContextVar[_Patience | None] = ContextVar("mloc_request_patience", default=None)
_stock_send = PrefectHttpxAsyncClient.send


@contextmanager
def requests_wait(what: str, wanted: Callable[[], bool]) -> Iterator[None]:
    """Let the requests of this context, and of tasks that it starts, wait for the server.

    Args:
        what: What waits, for the log.
        wanted: Whether waiting is right; asked before each request, after each failure, and every second. Requests
            that begin while it is not are sent as those of the stock client.
    """
    _install()
    token = _in_force.set(_Patience(what, wanted))
    try:
        yield
    finally:
        _in_force.reset(token)


@contextmanager
def requests_fail() -> Iterator[None]:
    """Let the requests of this context fail as those of the stock client: for displays, which must hold up nothing."""
    token = _in_force.set(None)
    try:
        yield
    finally:
        _in_force.reset(token)


def _install() -> None:
    """Make each client of this process look for the patience of its caller, also those that stock code opens."""
    vars_of_client: Any = PrefectHttpxAsyncClient
    vars_of_client.send = _send
    keep_retries_short()


async def _send(self: PrefectHttpxAsyncClient, request: Any, *args: Any, **kwargs: Any) -> Any:
    patience = _in_force.get()
    if patience is None or not patience.wanted():  # no caller repeats it: the client's own retries apply
        return await _stock_send(self, request, *args, **kwargs)

    async def send_once() -> Any:
        token = sent_once.set(True)
        try:
            return await _stock_send(self, request, *args, **kwargs)
        finally:
            sent_once.reset(token)

    return await until_answered(send_once, patience.what, wanted=patience.wanted)
