"""What clients see of a record: no secrets, and an outline of a long spec in lists."""

from __future__ import annotations

import json

import pytest

from mloc_prefect.plan import check
from mloc_prefect.store import record_views
from mloc_prefect.store.record_factory import planned_records
from mloc_prefect.store.record_views import (
    OUTLINED_FROM,
    list_answer,
    masked_submission,
    viewed,
    whole_answer,
    with_views,
    without_secrets,
)
from tests.support.endpoint import spec
from tests.support.records import record, submission

SECRET = "top-secret-value"


def test_a_secret_is_in_no_answer() -> None:
    text = f"spec: {{api_key: {SECRET}}}"
    seen = with_views(record(raw_yaml=text, parsed={"spec": {"api_key": SECRET}}))
    for answer in (whole_answer(seen), list_answer(seen)):
        assert SECRET not in json.dumps(answer)
        assert (answer["raw_yaml"], answer["parsed"]) == ("spec: {api_key: '***'}", {"spec": {"api_key": "***"}})
    assert not {"masked", "shown_yaml", "shown_parsed", "outline"} & set(whole_answer(seen))


def test_a_short_spec_is_whole_in_lists() -> None:
    seen = without_secrets(record(raw_yaml="a: 1", parsed={"a": 1}))
    assert list_answer(seen) == whole_answer(seen) == seen.to_dict()


@pytest.mark.parametrize("text", ["x" * OUTLINED_FROM, "a: &a [b]\nc: *a", ""])
def test_of_a_long_spec_lists_have_an_outline(text: str) -> None:
    parsed = {
        "apiVersion": "mloc/v1",
        "kind": "EchoTask",
        "metadata": {"name": "n" * 9000, "labels": {}},
        "spec": {"taskType": "echo", "data": "y" * OUTLINED_FROM},
    }
    seen = without_secrets(record(raw_yaml=text, parsed=parsed))
    answer = list_answer(seen)
    assert answer["raw_yaml"] is None
    assert {**answer["parsed"], "metadata": None} == {
        "apiVersion": "mloc/v1",
        "kind": "EchoTask",
        "metadata": None,
        "spec": {"taskType": "echo"},
    }
    assert len(json.dumps(answer)) < OUTLINED_FROM
    assert whole_answer(seen)["parsed"] == parsed


def test_an_outline_takes_odd_documents() -> None:
    odd = {"kind": ["x"], "metadata": "n", "spec": {"taskType": {"a": 1}}, "big": "y" * OUTLINED_FROM}
    seen = without_secrets(record(raw_yaml="*" + "x" * 10, parsed=odd))
    assert list_answer(seen)["parsed"] == {"kind": None, "spec": {"taskType": None}}


def test_texts_are_searched_once_for_a_submission(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counting(text: str) -> str:
        calls.append(text)
        return text

    monkeypatch.setattr(record_views, "mask_text", counting)
    monkeypatch.setattr(record_views, "mask_document", lambda _: pytest.fail("nothing in it can be a secret"))
    text = spec(stages=[{"name": f"s{n}"} for n in range(3)])
    plan, _ = check(text)
    assert plan is not None
    made = masked_submission(submission("s", raw_yaml=text))
    ids = {stage.key: stage.key for stage in plan.stages}
    records = planned_records(plan, made, ids, max_attempts=4, submitted_ts=0.0)
    assert calls == [text]
    assert [entry.masked for entry in records] == [True] * 3


def test_values_that_are_not_in_the_text_are_searched() -> None:
    plan, _ = check(spec(), overrides=(f"spec.api_key={SECRET}",))
    assert plan is not None
    made = masked_submission(submission("s", raw_yaml=spec()))
    (entry,) = planned_records(plan, made, {plan.stages[0].key: "t"}, max_attempts=4, submitted_ts=0.0, overridden=True)
    assert SECRET not in json.dumps(whole_answer(entry))


async def test_records_of_earlier_versions_are_masked_on_request() -> None:
    old, new = record(parsed={"token": SECRET}), without_secrets(record("t2"))
    seen = await viewed([old, new])
    assert seen[1] is new
    assert whole_answer(seen[0])["parsed"] == {"token": "***"}
