"""The client commands against an endpoint in this process."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from mloc_prefect.cli.app import app
from mloc_prefect.cli.client.endpoint import Endpoint
from mloc_prefect.cli.client.finding import find_tasks, label
from mloc_prefect.cli.client.tables import record_lines, table_lines, task_row, worker_row
from mloc_prefect.cli.client.tailing import data_lines
from mloc_prefect.cli.client.watching import watch_tasks
from mloc_prefect.errors import DispatchError, MlocError
from mloc_prefect.settings import get_settings

URL = "http://mloc.test:8000"
ONE, TWO, OTHER = (
    "5d1e7c2a-0000-4000-8000-000000000001",
    "5d1e7c2b-0000-4000-8000-000000000002",
    "77777777-0000-4000-8000-000000000003",
)
SUBMISSION = "abcdef00-0000-4000-8000-00000000000a"
SPEC = """
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: demo}
spec:
  taskType: echo
  resources: {replicas: 1, hardware: {cpu: 1, memory: 64Mi}}
  data: {message: hi}
"""


def record(task_id: str, status: str = "DONE", **more: Any) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "status": status,
        "submission_id": SUBMISSION,
        "parsed": {"metadata": {"name": "demo"}, "spec": {"taskType": "echo"}},
        "task_type": "echo",
        "attempts": 1,
        "max_attempts": 4,
        "error": None,
        **more,
    }


class Fake:
    """Answers like an endpoint; `records` change as a test goes on."""

    def __init__(self) -> None:
        self.records = {
            ONE: record(ONE, graph_node_name="first"),
            TWO: record(TWO, graph_node_name="second"),
            OTHER: record(OTHER, submission_id="ffffffff-0000-4000-8000-00000000000b"),
        }
        self.files: dict[str, bytes] = {}
        self.requests: list[httpx.Request] = []
        self.etags: dict[str, str] = {}
        self.page = 2

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        path = request.url.path
        if path == "/api/v1/tasks" and request.method == "GET":
            return self._list(request)
        if path.startswith("/api/v1/tasks/") and request.method == "GET":
            found = self.records.get(path.split("/")[4])
            return httpx.Response(200, json=found) if found else httpx.Response(404, json={"detail": "task not found"})
        if path.startswith("/api/v1/results/"):
            body = self.files.get(path.removeprefix("/api/v1/results/"))
            if body is None:
                return httpx.Response(404, json={"detail": "result not found"})
            return httpx.Response(200, content=body, headers={"ETag": f'"{self.etags.get(path, digest(body))}"'})
        return httpx.Response(404, json={"detail": "Not Found"})

    def _list(self, request: httpx.Request) -> httpx.Response:
        parameters = request.url.params
        wanted = parameters.get("submission_id")
        found = [r for r in self.records.values() if wanted in {None, r["submission_id"]}]
        if "limit" not in parameters:
            return httpx.Response(200, json=found)
        start = int(parameters.get("after", 0))
        headers = {}
        if start + self.page < len(found):
            headers["Link"] = f'</api/v1/tasks?limit=2&after={start + self.page}>; rel="next"'
        return httpx.Response(200, json=found[start : start + self.page], headers=headers)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def answering(handler: Any, token: str | None = None) -> Endpoint:
    return Endpoint(URL, token, transport=httpx.MockTransport(handler))


@pytest.fixture
def fake(monkeypatch):
    found = Fake()
    monkeypatch.setattr(Endpoint, "configured", classmethod(lambda *_: answering(found, "s3cret")))
    return found


def mloc(*arguments: str, **more: Any):
    return CliRunner().invoke(app, arguments, **more)


@pytest.mark.parametrize(
    ("status", "detail", "code", "text"),
    [
        (401, "Missing bearer token", 4, f"the endpoint {URL} refuses the token: Missing bearer token"),
        (403, "Invalid token", 4, f"the endpoint {URL} refuses the token: Invalid token"),
        (404, "Not Found", 4, f"{URL} is no MLOC endpoint, or one without this command"),
        (404, "task not found", 2, "task not found"),
        (409, "the task has ended: it is DONE", 2, "the task has ended: it is DONE"),
        (400, "Invalid YAML: x", 2, "the endpoint refuses this: Invalid YAML: x"),
        (422, [{"type": "missing", "msg": "Field required"}], 2, "the endpoint refuses this: Field required"),
        (503, "Redis at r:6379", 4, f"the endpoint {URL} cannot serve now: Redis at r:6379"),
        (500, "odd", 1, f"the endpoint {URL} answers 500: odd"),
    ],
)
def test_an_error_answer_is_one_line_with_the_exit_code_of_its_kind(status, detail, code, text):
    endpoint = answering(lambda _: httpx.Response(status, json={"detail": detail}), "s3cret")
    with pytest.raises(MlocError) as caught:
        endpoint.get("/workers")
    assert (caught.value.message, caught.value.exit_code) == (text, code)
    assert "s3cret" not in str(caught.value)


def test_what_answers_no_json_is_no_endpoint():
    with pytest.raises(DispatchError, match="no MLOC endpoint"):
        answering(lambda _: httpx.Response(200, text="<html>")).get("/workers")


def test_an_unreachable_endpoint_is_named_without_its_password():
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Connection refused", request=request)

    endpoint = Endpoint("http://me:pw@mloc.test:8000/", None, transport=httpx.MockTransport(refuse))
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
        Endpoint("mloc.test:8000", None)


def test_the_token_is_sent_and_the_url_comes_from_the_settings(monkeypatch):
    monkeypatch.setenv("MLOC_URL", URL)
    monkeypatch.setenv("ORCHESTRATOR_TOKEN", "s3cret")
    endpoint = Endpoint.configured(get_settings())
    assert endpoint.url == URL
    assert endpoint._http.headers["Authorization"] == "Bearer s3cret"


def test_ids_in_full_by_prefix_and_of_submissions(fake):
    endpoint = answering(fake)
    assert [r["task_id"] for r in find_tasks(endpoint, ONE)] == [ONE]
    assert [r["task_id"] for r in find_tasks(endpoint, "5D1E7C2B")] == [TWO]
    assert [r["task_id"] for r in find_tasks(endpoint, "777")] == [OTHER]
    assert [r["task_id"] for r in find_tasks(endpoint, SUBMISSION)] == [ONE, TWO]
    assert [r["task_id"] for r in find_tasks(endpoint, "abcdef")] == [ONE, TWO]
    for wanted, text in (("5d1e7c2", "2 ids begin with"), ("zz", "knows no task"), ("  ", "is empty")):
        with pytest.raises(MlocError, match=text):
            find_tasks(endpoint, wanted)


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

    monkeypatch.setattr(Endpoint, "configured", classmethod(lambda *_: answering(handle, "s3cret")))
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


class Changing(Fake):
    """Moves a record one step with each look at it."""

    def __init__(self, *steps: dict[str, Any] | int) -> None:
        super().__init__()
        self.steps = list(steps)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, int):
            raise httpx.ConnectError("refused", request=request)
        self.records[ONE] |= step
        return super().__call__(request)


def watched(*steps: dict[str, Any] | int) -> tuple[int, list[str]]:
    out = io.StringIO()
    pauses: list[float] = []
    code = watch_tasks(answering(Changing(*steps)), [ONE], stream=out, sleep=pauses.append)
    return code, [line.split("  ", 1)[1] for line in out.getvalue().splitlines()]


def test_watching_ends_with_the_task_and_says_each_change_once():
    code, lines = watched(
        {"status": "PENDING"},
        {"status": "DISPATCHED", "assigned_worker": "w"},
        {"status": "DISPATCHED"},
        {"status": "WAITING", "error": "boom"},
        {"status": "DISPATCHED", "attempts": 2},
        {"status": "DONE", "error": None},
    )
    assert code == 0
    assert [line.split(": ", 1)[1].split(" in ")[0] for line in lines] == [
        "started echo",
        "boom",
        "started, attempt 2",
        "DONE",
        "1 of 1 tasks",
    ]


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED"])
def test_watching_a_task_that_does_not_end_well_is_exit_5(state):
    code, lines = watched({"status": state, "error": "why"})
    assert code == 5
    assert lines[-1].startswith("failed: 0 of 1 tasks")


def test_watching_cuts_no_reason(capsys):
    why, first = "waits: " + "no worker has enough of what it needs; " * 4 + "end", "out of memory " * 9 + "end"
    _, lines = watched(
        {"status": "WAITING", "error": why}, {"status": "FAILED", "error": f"{first}\n  on the card 0\n  twice"}
    )
    assert any(line.endswith(why) for line in lines)
    assert capsys.readouterr().err == f"error: first 5d1e7c2a: {first}\n  on the card 0\n  twice\n"
    watched({"status": "CANCELLED", "error": "cancelled"})
    assert capsys.readouterr().err == ""


def test_who_stops_watching_is_told_what_the_others_wait_for(capsys):
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    fake, out = Changing({"status": "WAITING", "error": "no free worker\n  asked: w1, w2"}), io.StringIO()
    assert watch_tasks(answering(fake), [ONE], stream=out, sleep=interrupt) == 130
    assert capsys.readouterr().err == "waiting: first 5d1e7c2a: no free worker\n  asked: w1, w2\n"
    assert "1 of 1 tasks go on" in out.getvalue()


def test_watching_outlasts_a_restart_of_the_endpoint():
    code, lines = watched({"status": "DISPATCHED"}, 503, 503, {"status": "DONE"})
    assert code == 0
    assert sum("trying again" in line for line in lines) == 1


def test_watching_gives_up_after_a_while():
    with pytest.raises(DispatchError):
        watched({"status": "DISPATCHED"}, 503)


def test_results_are_printed_or_saved_with_their_files(fake, tmp_path):
    answer = b'{"result": {"ok": true}}'
    weights = bytes(range(256)) * 5000
    entries = [
        {"path": "responses.json", "status": "present", "sha256": digest(answer)},
        {"path": "final.zip", "status": "present", "sha256": digest(weights)},
        {"path": "artifacts/curve.png", "status": "present", "sha256": digest(b"png")},
        {"path": "logs", "status": "present", "file_count": 1},
        {"path": "../evil", "status": "present", "sha256": digest(b"")},
        {"path": "gone.txt", "status": "missing"},
    ]
    fake.files = {
        ONE: answer,
        f"{ONE}/files/manifest.json": json.dumps({"entries": entries}).encode(),
        f"{ONE}/files/final.zip": weights,
        f"{ONE}/files/curve.png": b"png",
    }
    assert json.loads(mloc("results", ONE).stdout) == {"result": {"ok": True}}
    saved = mloc("results", ONE, "-o", str(tmp_path / "out"))
    assert saved.exit_code == 0, saved.stderr
    assert (tmp_path / "out" / "final.zip").read_bytes() == weights
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["curve.png", "final.zip", "responses.json"]
    both = mloc("results", SUBMISSION, "-o", str(tmp_path / "both"))
    assert both.exit_code == 0
    assert (tmp_path / "both" / "first" / "responses.json").read_bytes() == answer
    assert not (tmp_path / "both" / "second").exists()


def test_a_file_that_is_not_what_the_endpoint_says_is_not_kept(fake, tmp_path):
    fake.files = {ONE: b"{}"}
    fake.etags = {f"/api/v1/results/{ONE}": "0" * 64}
    result = mloc("results", ONE, "-o", str(tmp_path))
    assert result.exit_code == 6
    assert "SHA-256" in result.stderr
    assert list(tmp_path.glob("*.json")) == []


@pytest.mark.parametrize(("tag", "code"), [('"{}"', 0), ('W/"{}"', 6), ("", 6)])
def test_a_file_that_was_uploaded_again_is_checked_by_the_tag_of_its_answer(fake, tmp_path, monkeypatch, tag, code):
    """Only where that tells no digest, the manifest counts, which is of the time before."""
    entries = [{"path": "final.zip", "status": "present", "sha256": digest(b"before")}]
    fake.files = {
        ONE: b"{}",
        f"{ONE}/files/manifest.json": json.dumps({"entries": entries}).encode(),
        f"{ONE}/files/final.zip": b"again",
    }

    def handle(request: httpx.Request) -> httpx.Response:
        answer = fake(request)
        if request.url.path.endswith("/final.zip"):
            answer.headers["ETag"] = tag.format(digest(b"again"))
        return answer

    monkeypatch.setattr(Endpoint, "configured", classmethod(lambda *_: answering(handle)))
    result = mloc("results", ONE, "-o", str(tmp_path))
    assert result.exit_code == code, result.stderr
    assert (tmp_path / "final.zip").exists() == (code == 0)


def test_no_result_yet_is_one_line(fake, tmp_path):
    fake.records[ONE] |= {"status": "FAILED", "error": "boom"}
    result = mloc("results", ONE)
    assert (result.exit_code, result.stderr.splitlines()[0]) == (
        2,
        "error: task first has no result; it is FAILED: boom",
    )
    assert mloc("results", ONE, "-o", str(tmp_path)).exit_code == 2


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
    assert list(data_lines(iter(stream))) == ["one", "two", "three"]


def test_cancelling_a_task_or_a_submission(fake, monkeypatch):
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            seen.append(request)
            return httpx.Response(200, json={"ok": True, "cancelled": [TWO], "stopping": [ONE]})
        return fake(request)

    monkeypatch.setattr(Endpoint, "configured", classmethod(lambda *_: answering(handle)))
    assert mloc("cancel", ONE).stdout == "cancelled: 5d1e7c2b\ntold to stop: 5d1e7c2a\n"
    mloc("cancel", SUBMISSION)
    assert [request.url.path for request in seen] == [f"/api/v1/tasks/{ONE}/cancel"] * 2
    assert [request.url.params.get("submission") for request in seen] == [None, "true"]
