"""Why a run of ours has its state, as a code for programs; the message beside it is for people.

A code travels in `state_details.run_input_keyset`, a dictionary of strings that Prefect itself reads for paused runs
only. It comes back with the state, costs no request (as labels would) and no row in the database (as `State.data`
would, which also changes whether Prefect runs a completed subflow again). Events about states do not carry it: whoever
decides by a code asks the API.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from mloc_prefect.prefect_ext.old_state_messages import code_of_message

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State


class StateCode(StrEnum):
    """What a state of one of our runs means. Stored by users' servers: values stay."""

    COMMITTED = "committed"
    """A stage is Completed and its result is stored; a Completed without this was set by a person."""

    LAST_ATTEMPT = "last-attempt"
    """A stage is Failed after attempts of its own; no further one follows."""

    NOT_RUN = "not-run"
    """A stage never ran, as a stage above it did not end DONE."""

    CLAIMED = "claimed"
    """A worker has taken the run and not begun; labels do not name the worker yet."""

    WORKER_LOST = "worker-lost"
    """The worker of the run was lost."""

    WORKER_STOPPED = "worker-stopped"
    """The worker of the run was stopped on purpose."""


@dataclass(frozen=True, slots=True)
class StateReason:
    """A code, and which worker it is about where it is about one.

    Attributes:
        code: What the state means.
        worker: Id of a worker, or empty.
        incarnation: Its process, or empty.
        attempt: Last attempt of a stage over all starts of its run, from 1; 0 when the state is about none.
    """

    code: StateCode
    worker: str = ""
    incarnation: str = ""
    attempt: int = 0

    def as_details(self) -> dict[str, Any]:
        """Return `state_details` in the form of the API."""
        facts = {
            "mloc.code": self.code.value,
            "mloc.worker": self.worker,
            "mloc.incarnation": self.incarnation,
            "mloc.attempt": str(self.attempt or ""),
        }
        return {"run_input_keyset": {name: value for name, value in facts.items() if value}}


def with_reason(state: State[Any], reason: StateReason) -> State[Any]:
    """Return a copy of a state that carries a reason."""
    return state.model_copy(update={"state_details": state.state_details.model_copy(update=reason.as_details())})


def reason_of(state: State[Any] | Mapping[str, Any] | None) -> StateReason | None:
    """Return the reason of a state, as the client or the API gives it; None when it has none of ours."""
    if state is None:
        return None
    if isinstance(state, Mapping):
        keys = (state.get("state_details") or {}).get("run_input_keyset")
        message = state.get("message")
    else:
        keys, message = state.state_details.run_input_keyset, state.message
    if keys and (code := keys.get("mloc.code")) in frozenset(StateCode):
        attempt = keys.get("mloc.attempt", "")
        return StateReason(
            StateCode(code),
            keys.get("mloc.worker", ""),
            keys.get("mloc.incarnation", ""),
            int(attempt) if attempt.isdecimal() else 0,
        )
    old = code_of_message(message)
    if old is None:
        return None
    code, worker, incarnation = (*old, "", "")[:3]
    return StateReason(StateCode(code), worker, incarnation)
