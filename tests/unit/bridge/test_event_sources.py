"""What the bridge reads of Prefect's events, and that what cannot be read stops nothing."""

from __future__ import annotations

import json

import pytest

from mloc_prefect.bridge.event_sources import StreamSource, parse, parse_all

EVENT = {
    "id": "e1",
    "event": "prefect.flow-run.Running",
    "occurred": "2026-01-01T00:00:00+00:00",
    "resource": {"prefect.resource.id": "prefect.flow-run.r1", "prefect.state-type": "RUNNING"},
    "related": [{"prefect.resource.id": "prefect.tag.mloc"}],
}
ODD = [
    {**EVENT, "id": "malformed", "occurred": "yesterday"},
    {**EVENT, "id": "malformed", "resource": {}},
    {**EVENT, "id": "malformed", "resource": {**EVENT["resource"], "prefect.run-count": "many"}},
    {**EVENT, "id": "malformed", "related": 7},
    "malformed",
]


def entry(event, **fields: bytes) -> dict[bytes, bytes]:
    found = {"attributes": json.dumps({"event": EVENT["event"]}).encode(), "data": json.dumps(event).encode()} | fields
    return {name.encode(): value for name, value in found.items()}


def test_an_event_about_a_run_of_ours_is_read():
    event = parse(EVENT)
    assert (event.run_id, event.state, event.type) == ("r1", "Running", "RUNNING")
    assert parse({**EVENT, "related": []}) is None


def test_the_stage_of_an_attempt_on_the_pool_tells_of_it():
    attempt = {"prefect.resource.id": "prefect.tag.mloc-attempt:t1"}
    assert parse({**EVENT, "related": [*EVENT["related"], attempt]}) is None


@pytest.mark.parametrize("malformed", ODD)
def test_an_odd_event_is_named_in_one_line_and_left_out(malformed, caplog):
    assert [event.id for event in parse_all([malformed, EVENT])] == ["e1"]
    assert caplog.text.count("\n") == caplog.text.count("event malformed of Prefect could not be handled") == 1


async def test_an_entry_that_cannot_be_read_is_acknowledged_and_does_not_come_again(monkeypatch, caplog):
    rows = [
        (b"1-0", entry(EVENT, data=b"{")),
        (b"2-0", {b"data": b"x"}),
        (b"3-0", entry(ODD[0])),
        (b"4-0", entry(EVENT)),
    ]
    acknowledged: list[bytes] = []
    source = StreamSource("redis://127.0.0.1:9/0")

    async def read(start):
        return rows

    async def ack(*entry_ids):
        acknowledged.extend(entry_ids)

    monkeypatch.setattr(source, "_read", read)
    monkeypatch.setattr(source, "_ack", ack)
    (delivery,) = await anext(source.batches())
    assert acknowledged == [b"1-0", b"2-0", b"3-0"]
    assert caplog.text.count("of Prefect's stream of events could not be handled") == 3
    await delivery.ack()
    assert acknowledged[-1] == b"4-0"
