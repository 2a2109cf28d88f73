"""Why a run has its state: a code that survives Prefect, and the messages of the version before."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.states import Completed, Crashed, Failed, Pending, to_state_create

from mloc_prefect.bridge.prefect_runs import view
from mloc_prefect.prefect_ext.run_facts import COMMITTED, STOPPED, taken_by
from mloc_prefect.prefect_ext.state_reasons import StateCode, StateReason, reason_of, with_reason

REASONS = [
    StateReason(StateCode.COMMITTED),
    StateReason(StateCode.CLAIMED, "worker-1", "i1"),
    StateReason(StateCode.LAST_ATTEMPT, attempt=3),
]


@pytest.mark.parametrize("reason", REASONS)
def test_a_reason_reaches_the_server_and_comes_back(reason: StateReason):
    from prefect.server.schemas.actions import StateCreate

    state = with_reason(Completed(message="for people"), reason)
    assert reason_of(state) == reason
    sent = to_state_create(state).model_dump(mode="json", serialize_as_any=True)
    kept = StateCreate.model_validate(sent).model_dump(mode="json")
    assert reason_of(kept) == reason
    assert kept["message"] == "for people"
    stored = {"type": "COMPLETED", "state_details": reason.as_details()}
    assert reason_of(stored) == reason
    assert view({"id": "r", "state": stored, "labels": {"mloc.attempt": "2"}}).attempt == max(2, reason.attempt)


def test_the_details_of_a_state_are_kept_beside_its_reason():
    state = Pending(message="x")
    state.state_details.cache_key = "kept"
    assert with_reason(state, REASONS[0]).state_details.cache_key == "kept"
    assert reason_of(state) is None, "the state itself is not changed"


def test_the_server_keeps_strings_of_a_state_by_name():
    """A dictionary of strings that Prefect reads of paused runs only; see `state_reasons`."""
    from prefect.server.schemas.states import StateDetails

    assert StateDetails(run_input_keyset={"mloc.code": "x"}).run_input_keyset == {"mloc.code": "x"}


STORED = [
    ("COMPLETED", COMMITTED, StateReason(StateCode.COMMITTED)),
    ("COMPLETED", f"{COMMITTED} before", StateReason(StateCode.COMMITTED)),
    ("FAILED", "not run: stage 'a' failed", StateReason(StateCode.NOT_RUN)),
    ("CRASHED", STOPPED, StateReason(StateCode.WORKER_STOPPED)),
    ("CRASHED", "worker gpu 1 was lost", StateReason(StateCode.WORKER_LOST, "gpu 1")),
    ("PENDING", taken_by("w (a)", "i1"), StateReason(StateCode.CLAIMED, "w (a)", "i1")),
    ("COMPLETED", "All states completed.", None),
    ("FAILED", "the stage was not run: see above", None),
    ("SCHEDULED", "worker w was lost; start 2 of 4", None),
    ("CRASHED", "worker w was lost, and this run with it", None),
    ("PENDING", None, None),
]


@pytest.mark.parametrize(("kind", "message", "reason"), STORED)
def test_what_the_version_before_stored_is_understood(kind: str, message: str | None, reason: StateReason | None):
    stored = {"type": kind, "message": message, "state_details": {"run_input_keyset": None}}
    assert reason_of(stored) == reason
    assert view({"id": "r", "state": stored}).code is (reason.code if reason else None)


@pytest.mark.parametrize(
    "stored",
    [
        None,
        {"type": "RUNNING"},
        {"type": "PAUSED", "state_details": {"run_input_keyset": {"response": "paused-1-response"}}},
        {"type": "FAILED", "state_details": {"run_input_keyset": {"mloc.code": "of a later version"}}},
        Failed(message="boom"),
        Crashed(),
    ],
)
def test_other_states_have_no_reason_of_ours(stored: Any):
    assert reason_of(stored) is None
