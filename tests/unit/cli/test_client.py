"""The client commands against an endpoint in this process."""

from __future__ import annotations

import json

import httpx
import pytest

from mloc_prefect.cli.client.record_tables import record_lines, table_lines, task_row, worker_row
from mloc_prefect.client.stream_lines import ServerEventReader, log_lines_of
from mloc_prefect.client.sync_client import MlocClient
from mloc_prefect.client.task_lookup import label
from mloc_prefect.errors import DispatchError, MlocError
from mloc_prefect.settings import get_settings
from tests.support.client_endpoint import ONE, OTHER, SPEC, SUBMISSION, TWO, URL, Fake, answering, mloc, record


@pytest.mark.parametrize(
    ("status", "detail", "code", "text"),
    [
        (401, "Missing bearer token", 4, f"the endpoint {URL} refuses the token: Missing bearer token"),
        (403, "Invalid token", 4, f"the endpoint {URL} refuses the token: Invalid token"),
        (404, "Not Found", 4, f"{URL} is not an MLOC endpoint, or does not support this command"),
        (404, "task not found", 2, "task not found"),
        (409, "the task has ended: it is DONE", 2, "the task has ended: it is DONE"),
        (400, "Invalid YAML: x", 2, "the endpoint refused the request: Invalid YAML: x"),
        (422, [{"type": "missing", "msg": "Field required"}], 2, "the endpoint refused the request: Field required"),
        (503, "Redis at r:6379", 4, f"the endpoint {URL} is unavailable: Redis at r:6379"),
        (500, "odd", 1, f"the endpoint {URL} answered 500: odd"),
    ],
)
def test_an_error_answer_is_one_line_with_the_exit_code_of_its_kind(status, detail, code, text):
    endpoint = answering(lambda _: httpx.Response(status, json={"detail": detail}), "s3cret")
    with pytest.raises(MlocError) as caught:
        endpoint.get("/workers")
    assert (caught.value.message, caught.value.exit_code) == (text, code)
    assert "s3cret" not in str(caught.value)


def test_what_answers_no_json_is_no_endpoint():
    with pytest.raises(DispatchError, match="not an MLOC endpoint"):
        answering(lambda _: httpx.Response(200, text="<html>")).get("/workers")


def test_an_unreachable_endpoint_is_named_without_its_password():
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Connection refused", request=request)

    endpoint = MlocClient("http://me:pw@mloc.test:8000/", None, transport=httpx.MockTransport(refuse))
    with pytest.raises(DispatchError) as caught:
        endpoint.get("/workers")
    assert caught.value.message == f"the endpoint {URL} does not answer: Connection refused"


def test_a_silent_endpoint_is_given_up():
    def wait(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("", request=request)

    with pytest.raises(DispatchError, match="does not answer in time"):
        answering(wait).get("/workers")


def test_the_url_must_be_one():
    with pytest.raises(MlocError, match="MLOC_URL is not an http or https URL"):
        MlocClient("mloc.test:8000", None)


def test_the_token_is_sent_and_the_url_comes_from_the_settings(monkeypatch):
    monkeypatch.setenv("MLOC_URL", URL)
    monkeypatch.setenv("ORCHESTRATOR_TOKEN", "s3cret")
    endpoint = MlocClient.configured(get_settings())
    assert endpoint.url == URL
    assert endpoint._http.headers["Authorization"] == "Bearer s3cret"


def test_ids_in_full_by_prefix_and_of_submissions(fake):
    endpoint = answering(fake)
    assert [r["task_id"] for r in endpoint.status(ONE)] == [ONE]
    assert [r["task_id"] for r in endpoint.status("5D1E7C2B")] == [TWO]
    assert [r["task_id"] for r in endpoint.status("777")] == [OTHER]
    assert [r["task_id"] for r in endpoint.status(SUBMISSION)] == [ONE, TWO]
    assert [r["task_id"] for r in endpoint.status("abcdef")] == [ONE, TWO]
    for wanted, text in (("5d1e7c2", "2 ids start with"), ("zz", "knows no task"), ("  ", "is empty")):
        with pytest.raises(MlocError, match=text):
            endpoint.status(wanted)


def test_status_shows_facts_and_json(fake):
    fake.records[ONE] |= {"status": "FAILED", "error": "out of memory\nand more", "attempts": 4}
    shown = mloc("status", "5d1e7c2a")
    assert shown.exit_code == 0
    assert "state       FAILED" in shown.stdout
    assert "attempts    4 of 4" in shown.stdout
    assert "error       out of memory\n" in shown.stdout
    assert json.loads(mloc("status", ONE, "--json").stdout) == fake.records[ONE]
    assert mloc("status", SUBMISSION).stdout.count("task        ") == 2


def test_an_unknown_id_is_one_line(fake):
    result = mloc("status", "0000")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[0] == f"error: {URL} knows no task or submission '0000'"


def test_the_list_is_a_table(fake):
    lines = mloc("list").stdout.splitlines()
    assert lines[0].split() == ["ID", "NAME", "TYPE", "STATE", "WORKER", "AGE", "NOTE"]
    assert lines[1].split() == ["5d1e7c2a", "first", "echo", "DONE"]
    assert fake.requests[-1].url.params["newest_first"] == "true"
    fake.records.clear()
    assert mloc("list", "--status", "failed").stdout == "no tasks\n"
    assert fake.requests[-1].url.params["status"] == "FAILED"


def test_rows_of_tasks_and_workers():
    row = task_row(
        record(
            ONE, "WAITING", attempts=2, assigned_worker="w", error="x" * 80, submitted_at="1970-01-01T00:01:00+00:00"
        ),
        now=180.0,
    )
    assert row == ["5d1e7c2a", "demo", "echo", "WAITING #2", "w", "2 min", "x" * 59 + "…"]
    hardware = {"cpu": {"logical_cores": 8}, "memory": {"total_bytes": 1 << 30}, "gpu": {"gpus": [{"name": "a"}] * 2}}
    worker = {"worker_id": "w", "status": "IDLE", "hardware": hardware, "tags": ["x"], "last_seen": None}
    assert worker_row(worker) == ["w", "IDLE", "8", "1.0 GiB", "2 x a", "x", "", "", "", ""]
    assert worker_row({"worker_id": "w", "stale": True}) == ["w", "GONE", *[""] * 8]
    leases = [{"holder": f"task-{n}", "devices": ["gpu:0", "gpu:1"]} for n in range(5)]
    busy = {"leases": leases[:1], "models": ["org/model", "/models/other/"], "runs": ["r1", "r2"]}
    assert worker_row({**worker, "elastic_disabled": True, "at_work": busy})[1:] == [
        *["OFF", "8", "1.0 GiB", "2 x a", "x"],
        *["gpu:0,gpu:1 task-0", "org/model, other", "2", ""],
    ]
    assert worker_row({**worker, "stale": True, "at_work": busy, "cached_models": ["m"]})[6:] == ["", "", "", ""]
    assert worker_row({"worker_id": "w", "at_work": {"leases": leases}})[6].endswith("task-2 and 2 more")
    assert table_lines(("A", "B"), [["1", "22"], ["333", ""]]) == ["A    B", "1    22", "333"]
    assert any(
        line.startswith("ran") and "12 s" in line
        for line in record_lines(record(ONE, started_ts=1.0, finished_ts=13.0))
    )
    assert label({"task_id": ONE}) == "5d1e7c2a"


def test_a_submission_sends_the_text_as_it_is(fake, tmp_path, monkeypatch):
    sent = posting(fake, monkeypatch)
    file = tmp_path / "task.yaml"
    file.write_text(SPEC)
    result = mloc("submit", str(file))
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [f"submission {SUBMISSION}", f"{ONE}  first  PENDING"]
    assert sent[0].content.decode() == SPEC
    assert sent[0].headers["Content-Type"] == "text/yaml"
    assert sent[0].headers["Authorization"] == "Bearer s3cret"


def posting(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> list[httpx.Request]:
    sent: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method != "POST":
            return fake(request)
        sent.append(request)
        task = {"task_id": ONE, "status": "PENDING"}
        return httpx.Response(200, json={"ok": True, "count": 1, "tasks": [task], "submission_id": SUBMISSION})

    monkeypatch.setattr(MlocClient, "configured", classmethod(lambda *_: answering(handle, "s3cret")))
    return sent


def test_overrides_and_parameters_travel_in_json(fake, tmp_path, monkeypatch):
    sent = posting(fake, monkeypatch)
    file = tmp_path / "task.yaml"
    file.write_text(SPEC.replace("hi", '"${param.who}"'))
    result = mloc("submit", str(file), "--set", "spec.data.message=bye ${param.who}", "--param", "who=you", "--json")
    assert result.exit_code == 0, result.stderr
    body = json.loads(sent[0].content)
    assert json.loads(body["yaml"])["spec"]["data"] == {"message": "bye ${param.who}"}
    assert body["parameters"] == {"who": "you"}
    assert json.loads(result.stdout)["tasks"][0]["task_id"] == ONE


def test_a_bad_spec_is_shown_here_and_not_sent(fake, tmp_path, monkeypatch):
    sent = posting(fake, monkeypatch)
    file = tmp_path / "task.yaml"
    file.write_text(SPEC.replace("taskType: echo", "taskType: eco"))
    result = mloc("submit", str(file))
    assert result.exit_code == 2
    assert "task.yaml:6" in result.stderr
    assert sent == []


def test_log_events_are_lines_again():
    stream = [
        ": following",
        "",
        "id: 5",
        "data: one",
        "",
        "data: two",
        "data: three",
        "",
        "event: end",
        'data: {"x":1}',
        "",
    ]
    reader = ServerEventReader()
    assert [shown for line in stream for shown in log_lines_of(reader.take(line))] == ["one", "two", "three"]


def test_cancelling_a_task_or_a_submission(fake, monkeypatch):
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            seen.append(request)
            return httpx.Response(200, json={"ok": True, "cancelled": [TWO], "stopping": [ONE]})
        return fake(request)

    monkeypatch.setattr(MlocClient, "configured", classmethod(lambda *_: answering(handle)))
    assert mloc("cancel", ONE).stdout == "cancelled: 5d1e7c2b\nstopping: 5d1e7c2a\n"
    mloc("cancel", SUBMISSION)
    assert [request.url.path for request in seen] == [f"/api/v1/tasks/{ONE}/cancel"] * 2
    assert [request.url.params.get("submission") for request in seen] == [None, "true"]


def test_cells_are_one_line_without_control_characters():
    hostile = record(ONE, parsed={"metadata": {"name": "a\x1b[2J\nb"}}, error="c\x9bd", assigned_worker="w\r")
    lines = [*table_lines((), [task_row(hostile)]), *record_lines(hostile)]
    assert not any(character in line for line in lines for character in "\x1b\n\x9b\r")
    assert "a\\x1b[2J\\nb" in lines[0]
