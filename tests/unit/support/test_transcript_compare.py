"""How recorded conversations are compared: nothing may slip through."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.support.replay import out_of_order
from tests.support.transcript import (
    ABSENT,
    PRESENT,
    Differences,
    Found,
    Names,
    compare,
    compare_messages,
    scenario,
    scenarios,
)

ROOT = Path(__file__).parents[3]


def test_the_recording_is_whole() -> None:
    names = scenarios()
    assert names == ["01", "02", "03", "04", "05", "07", "09", "10", "18", "20"]
    assert sum(len(scenario(name)["steps"]) for name in names) == 109


def test_texts_of_earlier_steps_are_put_in() -> None:
    steps = scenario("03")["steps"]
    assert steps[1]["json"]["raw_yaml"] == steps[0]["body"]
    assert "<body of step" not in str([scenario(name) for name in scenarios()])


@pytest.mark.parametrize(
    ("recorded", "ours", "fields"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, ["json.a"]),
        ({"a": 1}, {"a": 1.0}, ["json.a"]),
        ({"a": 0}, {"a": False}, ["json.a"]),
        ({"a": None}, {}, ["json.a"]),
        ({}, {"a": None}, ["json.a"]),
        ([1, 2], [1], ["json[1]"]),
        ([1], [1, {"a": 2}], ["json[1]"]),
        ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}, ["json.a[0].b"]),
        ({"a": {}}, {"a": []}, ["json.a"]),
    ],
)
def test_every_place_that_differs_is_found(recorded, ours, fields) -> None:
    assert [found.field for found in compare(recorded, ours)] == fields


def test_ids_times_ports_and_paths_become_placeholders() -> None:
    names = Names("8000", "/tmp/results")
    names.learn({"tasks": [{"task_id": "<task-1>", "x": 1}]}, {"tasks": [{"task_id": "abc"}]})
    ours = {"at": "2025-09-29T10:00:00.123456+00:00", "path": "/tmp/results/abc/f", "url": "http://h:8000/x"}
    expected = {"at": "<ts>", "path": "<results-dir>/<task-1>/f", "url": "http://h:<port>/x"}
    assert names.normal(ours) == expected
    assert names.fill("/api/<task-1>") == "/api/abc"
    assert "<" not in names.fill("/api/<task-7>")


def test_the_first_id_that_a_place_has_stays() -> None:
    names = Names("1", "/r")
    names.learn("<task-1>", "abc")
    names.learn("<task-1>", "other")
    assert names.ids == {"<task-1>": "abc"}


def status(worker: str, state: str, **extra: str) -> list:
    message = {"type": "STATUS", "worker_id": worker, "status": state, "ts": "<ts>"}
    return ["workers.events", message | ({"extra": extra} if extra else {})]


def test_messages_are_matched_by_what_they_are_about() -> None:
    recorded = [status("w", "RUNNING"), status("w", "RUNNING", task_id="t"), status("w", "RUNNING")]
    assert compare_messages(recorded, [recorded[2], recorded[1], recorded[0]]) == []
    lost = compare_messages(recorded, recorded[:2])
    assert lost == [Found("messages.workers.events/STATUS/RUNNING/w#2", PRESENT, ABSENT)]
    more = compare_messages(recorded[:1], recorded[:2])
    assert more == [Found("messages.workers.events/STATUS/RUNNING/w/t", ABSENT, PRESENT)]


def test_a_message_that_comes_too_early_is_told() -> None:
    told = ["tasks", {"task_id": "t", "assigned_worker": "w"}]
    begins, rests = status("w", "RUNNING", task_id="t"), status("w", "IDLE", last_task="t")
    ends = ["tasks.events", {"type": "TASK_SUCCEEDED", "worker_id": "w", "task_id": "t"}]
    assert out_of_order([told, begins, ends, rests]) == []
    assert out_of_order([begins, told, ends, rests]) != []
    assert out_of_order([told, begins, rests, ends]) != []


def differences(**entry) -> Differences:
    given = {"scenario": "03", "step": "1", "field": "json.a", "reason": "why"} | entry
    return Differences([given], [])


@pytest.mark.parametrize(
    ("entry", "found", "explained"),
    [
        ({"ours": 2}, Found("json.a", 1, 2), True),
        ({"ours": 2}, Found("json.a", 1, 3), False),
        ({"ours": True}, Found("json.a", 0, 1), False),
        ({"ours": 2, "field": "json.b"}, Found("json.a", 1, 2), False),
        ({"ours": 2, "field": "json*.a"}, Found("json[0].a", 1, 2), True),
        ({"ours": 2, "field": "json.tasks[*].a"}, Found("json.tasks[1].a", 1, 2), True),
        ({"ours": 2, "step": "2"}, Found("json.a", 1, 2), False),
        ({"ours": 2, "scenario": "*", "step": "*"}, Found("json.a", 1, 2), True),
        ({"ours": "<more>"}, Found("json.a", ABSENT, 2), True),
        ({"ours": "<more>"}, Found("json.a", 1, 2), False),
        ({"replaced": {"token": "***"}}, Found("json.a", "a token", "a ***"), True),
        ({"replaced": {"token": "***"}}, Found("json.a", "a token", "an ***"), False),
    ],
)
def test_only_the_listed_value_at_the_listed_place_is_explained(entry, found, explained) -> None:
    listed = differences(**entry)
    assert (listed.unexplained("03", "1", [found]) == []) is explained
    assert (listed.unused() == []) is explained


def test_each_combination_of_an_entry_counts_for_itself() -> None:
    listed = Differences.load()
    assert all(isinstance(entry[key], str) for entry in listed.entries for key in ("scenario", "step", "field"))
    assert all(entry["reason"] for entry in [*listed.entries, *listed.amended])


def test_the_page_of_differences_is_the_one_that_the_list_makes() -> None:
    spec = importlib.util.spec_from_file_location("compatibility_table", ROOT / "docs" / "compatibility_table.py")
    assert spec is not None
    assert spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    assert table.PAGE.read_text(encoding="utf-8") == table.page(), "run python docs/compatibility_table.py"
