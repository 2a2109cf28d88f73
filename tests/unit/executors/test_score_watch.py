"""Rows of vLLM whose scores are NaN fail by name; the engine is a stand-in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mloc_prefect.executors.vllm.score_watch import watch_scores


def engine_of(*outputs: Any, **states: Any) -> Any:
    core = SimpleNamespace(get_output=lambda: SimpleNamespace(outputs=list(outputs)))
    return SimpleNamespace(engine_core=core, output_processor=SimpleNamespace(request_states=states))


def output(name: str, nans: int) -> Any:
    return SimpleNamespace(request_id=name, num_nans_in_logits=nans)


def test_requests_whose_scores_are_nan_are_named_as_they_were_added() -> None:
    parent = SimpleNamespace(external_req_id="row-3")
    states = {
        "row-1-a": SimpleNamespace(parent_req=None, external_req_id="row-1"),
        "row-2-b": SimpleNamespace(parent_req=None, external_req_id="row-2"),
        "0_row-3-c": SimpleNamespace(parent_req=parent, external_req_id="0_row-3"),
    }
    engine = engine_of(output("row-1-a", 0), output("row-2-b", 7), output("0_row-3-c", 7), **states)
    broken = watch_scores(engine)
    assert broken == set()
    found = engine.engine_core.get_output()
    assert len(found.outputs) == 3
    assert broken == {"row-2", "row-3"}


def test_an_engine_that_counts_no_nan_goes_on() -> None:
    engine = engine_of(SimpleNamespace(request_id="row-1"))
    broken = watch_scores(engine)
    engine.engine_core.get_output()
    assert broken == set()
