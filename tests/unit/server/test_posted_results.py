"""Results that are posted: envelopes, ids, records, limits. [protocol 1.4]"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.artifacts.layout import safe_task_id
from mloc_prefect.artifacts.manifest import Manifest, commit_manifest, survey
from mloc_prefect.store.interfaces import TASK_EVENTS
from mloc_prefect.store.states import Phase, StatusMark
from tests.support.endpoint import served, spec

if TYPE_CHECKING:
    pass
from tests.support.task_files import RESULTS, put

JSON = {"content-type": "application/json"}


async def test_an_envelope_is_stored_and_returned(tmp_path):
    async with served(tmp_path) as endpoint:
        posted = {"task_id": " free-form ", "worker_id": "w", "metadata": {"m": 1}, "result": {"x": "é"}, "other": 1}
        answer = await endpoint.client.post(RESULTS, json={**posted, "received_at": "yesterday"})
        path = endpoint.results / "free-form" / "responses.json"
        assert answer.json() == {"ok": True, "path": str(path)}
        assert '"é"' in path.read_text()
        assert path.read_text().startswith('{\n  "task_id"')
        got = await endpoint.client.get(f"{RESULTS}/%20free-form")
        assert got.json() == {
            "task_id": "free-form",
            "worker_id": "w",
            "metadata": {"m": 1},
            "received_at": "yesterday",
            "result": {"x": "é"},
        }
        assert list(got.json()) == ["task_id", "worker_id", "metadata", "received_at", "result"]
        same = await endpoint.client.get(f"{RESULTS}/free-form/files/responses.json")
        assert (same.json(), same.headers["content-type"]) == (got.json(), "application/json")
        await endpoint.client.post(RESULTS, json={"task_id": "free-form", "result": {}})
        again = (await endpoint.client.get(f"{RESULTS}/free-form")).json()
        assert (again["worker_id"], again["metadata"], again["result"]) == (None, None, {})
        assert datetime.fromisoformat(again["received_at"]).utcoffset() is not None


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        (b"", 422, [{"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}]),
        (b'{"task_id": "  ", "result": {}}', 400, "task_id is required"),
        (
            b'{"result": {}}',
            422,
            [
                {
                    "type": "missing",
                    "loc": ["body", "task_id"],
                    "msg": "Field required",
                    "input": {"result": {}},
                }
            ],
        ),
        (
            b'{"task_id": "a", "result": [1]}',
            422,
            [
                {
                    "type": "dict_type",
                    "loc": ["body", "result"],
                    "msg": "Input should be a valid dictionary",
                    "input": [1],
                }
            ],
        ),
        (
            b'{"task_id": 5, "result": {}}',
            422,
            [
                {
                    "type": "string_type",
                    "loc": ["body", "task_id"],
                    "msg": "Input should be a valid string",
                    "input": 5,
                }
            ],
        ),
        (
            b"[1]",
            422,
            [
                {
                    "type": "model_attributes_type",
                    "loc": ["body"],
                    "msg": "Input should be a valid dictionary or object to extract fields from",
                    "input": [1],
                }
            ],
        ),
    ],
)
async def test_bad_results(tmp_path, body, status, detail):
    async with served(tmp_path) as endpoint:
        answer = await endpoint.client.post(RESULTS, content=body, headers=JSON)
        assert (answer.status_code, answer.json()["detail"]) == (status, detail)
        assert not endpoint.results.exists()


@pytest.mark.parametrize("body", [b"{oops", b'"\xff"', b"[" * 100_000])
async def test_results_that_are_no_json(tmp_path, body):
    async with served(tmp_path) as endpoint:
        answer = await endpoint.client.post(RESULTS, content=body, headers=JSON)
        assert answer.status_code in {400, 422}


async def test_another_content_type_is_refused_as_the_original_does(tmp_path):
    async with served(tmp_path) as endpoint:
        text = '{"task_id":"a","result":{}}'
        answer = await endpoint.client.post(RESULTS, content=text, headers={"content-type": "text/yaml"})
        assert answer.status_code == 422
        assert answer.json()["detail"][0] == {
            "type": "model_attributes_type",
            "loc": ["body"],
            "msg": "Input should be a valid dictionary or object to extract fields from",
            "input": text,
        }


async def test_numbers_that_json_does_not_know_come_back_as_null(tmp_path):
    async with served(tmp_path) as endpoint:
        body = b'{"task_id": "nan", "result": {"loss": [NaN, -Infinity, 1e999, 1.5], "s": "\\ud800"}}'
        assert (await endpoint.client.post(RESULTS, content=body, headers=JSON)).status_code == 200
        got = await endpoint.client.get(f"{RESULTS}/nan")
        assert (got.status_code, got.json()["result"]["loss"]) == (200, [None, None, None, 1.5])
        assert r"\ud800" in got.content.decode(), "what is sent is UTF-8, in which half of a pair is an escape"


async def test_an_id_that_is_no_text_is_refused_before_anything_is_stored(tmp_path):
    async with served(tmp_path) as endpoint:
        answer = await endpoint.client.post(RESULTS, content=rb'{"task_id": "\ud800", "result": {}}', headers=JSON)
        assert (answer.status_code, "surrogate" in answer.json()["detail"]) == (400, True)
        assert not endpoint.results.exists()


async def test_what_nests_too_deep_to_be_shown_again_is_refused_all_the_same(tmp_path):
    """Answers are written a few frames deeper than bodies are read: the depths at which only that fails."""
    async with served(tmp_path) as endpoint:
        for depth in range(900, 1000):
            deep = "[" * depth + "]" * depth
            for path, body in (
                ("/api/v1/tasks", deep),
                (RESULTS, deep),
                (RESULTS, f'{{"task_id": {deep}, "result": {{}}}}'),
                ("/workers/w/elastic", deep),
            ):
                answer = await endpoint.client.post(path, content=body, headers=JSON)
                assert answer.status_code in {400, 422}, (depth, path)
                assert answer.json()["detail"]
        for size in (1, 70_000):  # the latter is read in a thread
            taken = 0
            for depth in range(999, 899, -1):
                deep = "[" * depth + "]" * depth
                body = f'{{"task_id": "x", "result": {{"pad": "{"y" * size}", "a": {deep}}}}}'
                answer = await endpoint.client.post(RESULTS, content=body, headers=JSON)
                assert answer.status_code in {200, 400}, (depth, size)
                taken += answer.status_code == 200
                if taken == 12:  # those below are further from the limit, and each costs a tenth of a second
                    break


@pytest.mark.parametrize(
    "task_id", ["../../etc/x y.z", "/etc/passwd", "..", ".", "a/b", "ü", "x" * 400, "a\0b", "~", "C:\\x"]
)
async def test_ids_stay_inside_and_apart(tmp_path, task_id):
    async with served(tmp_path) as endpoint:
        answer = await endpoint.client.post(
            RESULTS, content=json.dumps({"task_id": task_id, "result": {}}), headers=JSON
        )
        assert answer.status_code == 200, answer.text
        path = Path(answer.json()["path"])
        assert path == endpoint.results / safe_task_id(task_id) / "responses.json"
        assert path.is_file()
        assert json.loads(path.read_text("utf-8"))["task_id"] == task_id
        twin = re.sub(r"[^\w-]", "_", task_id)
        assert twin == task_id or not (endpoint.results / twin).exists(), "the twin of the original's rule is another"


async def test_what_is_not_there(tmp_path):
    async with served(tmp_path) as endpoint:
        lost = await endpoint.client.get(f"{RESULTS}/nobody")
        assert (lost.status_code, lost.json()) == (404, {"detail": "result not found"})
        blank = await endpoint.client.get(f"{RESULTS}/%20")
        assert (blank.status_code, blank.json()) == (400, {"detail": "task_id is required"})
        slash = await endpoint.client.get(f"{RESULTS}/a%2Fb")
        assert (slash.status_code, slash.json()) == (404, {"detail": "Not Found"})


async def test_files_that_others_wrote(tmp_path):
    async with served(tmp_path) as endpoint:
        for name, content in (("raw", b'{"ok": true, "items": []}'), ("broken", b"{not json"), ("bytes", b"\xff\xfe")):
            (endpoint.results / name).mkdir(parents=True)
            (endpoint.results / name / "responses.json").write_bytes(content)
        assert (await endpoint.client.get(f"{RESULTS}/raw")).content == b'{"ok": true, "items": []}'
        assert (await endpoint.client.get(f"{RESULTS}/broken")).json() == {"task_id": "broken", "raw": "{not json"}
        assert (await endpoint.client.get(f"{RESULTS}/bytes")).json()["task_id"] == "bytes"
        (endpoint.results / "folder" / "responses.json").mkdir(parents=True)
        unreadable = await endpoint.client.get(f"{RESULTS}/folder")
        assert (unreadable.status_code, unreadable.json()["detail"].startswith("Failed to read result: ")) == (
            500,
            True,
        )


@pytest.mark.parametrize(
    "mark", [StatusMark(1, Phase.PENDING), StatusMark(1, Phase.STARTED), StatusMark(3, Phase.WAITING)]
)
async def test_a_posted_result_completes_the_task_once(tmp_path, mark):
    async with served(tmp_path) as endpoint:
        task_id = await endpoint.one()
        await endpoint.stores.tasks.transition(task_id, mark, {"error": "was bad", "next_retry_at": "soon"})
        for _ in range(2):
            assert (await endpoint.client.post(RESULTS, json={"task_id": task_id, "result": {}})).status_code == 200
        record = await endpoint.stores.tasks.get(task_id)
        assert record is not None
        assert (str(record.status), record.error, record.next_retry_at) == ("DONE", None, None)
        sent = [message for channel, message in endpoint.stores.publisher.sent if channel == TASK_EVENTS]  # type: ignore[attr-defined]
        assert [message["type"] for message in sent] == ["TASK_SUCCEEDED"]


async def test_workers_of_the_original_protocol_tell_of_their_success_themselves(tmp_path):
    async with served(tmp_path) as endpoint:
        task_id = await endpoint.one()
        await endpoint.stores.tasks.transition(task_id, StatusMark(1, Phase.STARTED), {"protocol": "original"})
        await endpoint.client.post(RESULTS, json={"task_id": task_id, "result": {}})
        record = await endpoint.stores.tasks.get(task_id)
        assert record is not None
        assert str(record.status) == "DONE"
        assert endpoint.stores.publisher.sent == []  # type: ignore[attr-defined]


async def test_a_result_of_our_own_stage_runner_only_lies_there(tmp_path):
    async with served(tmp_path) as endpoint:
        task_id = await endpoint.one()
        headers = {"X-MLOC-Stage-Run": "5e0d6b4e-0000-4000-8000-000000000000"}
        answer = await endpoint.client.post(RESULTS, json={"task_id": task_id, "result": {}}, headers=headers)
        assert answer.status_code == 200
        record = await endpoint.stores.tasks.get(task_id)
        assert record is not None
        assert str(record.status) == "WAITING"


async def test_a_terminal_record_does_not_reopen(tmp_path):
    async with served(tmp_path) as endpoint:
        task_id = await endpoint.one()
        await endpoint.stores.tasks.transition(task_id, StatusMark(4, Phase.FAILED), {"error": "no luck"})
        await endpoint.client.post(RESULTS, json={"task_id": task_id, "result": {}})
        record = await endpoint.stores.tasks.get(task_id)
        assert record is not None
        assert (str(record.status), record.error) == ("FAILED", "no luck")


async def finished(endpoint, task_id: str, result: dict) -> Path:
    """Commit a result as the stage runner does; return the task's directory."""
    home = endpoint.results / task_id
    home.mkdir(parents=True, exist_ok=True)
    (home / "responses.json").write_text(json.dumps(result))
    digest = (
        (home / "responses.json").stat().st_size,
        hashlib.sha256((home / "responses.json").read_bytes()).hexdigest(),
    )
    assert commit_manifest(
        home, Manifest(task_id=task_id, generated_at="now", entries=survey(home, result=digest), spec_sha256="0")
    )
    return home


@pytest.mark.parametrize("headers", [{}, {"X-MLOC-Stage-Run": "5e0d6b4e-0000-4000-8000-000000000000"}])
async def test_another_result_of_a_finished_task_is_refused(tmp_path, headers):
    """The same one is accepted again: a worker may have lost the answer."""
    async with served(tmp_path) as endpoint:
        task_id = await endpoint.one()
        home = await finished(endpoint, task_id, {"ok": True})
        before = (home / "responses.json").read_bytes()
        for result, status in (({"ok": False}, 409), ({"ok": True}, 200)):
            posted = {"task_id": task_id, "result": result}
            answer = await endpoint.client.post(RESULTS, json=posted, headers=headers)
            assert (answer.status_code, (home / "responses.json").read_bytes()) == (status, before)


async def test_an_upload_does_not_replace_the_result_of_a_finished_task(tmp_path):
    async with served(tmp_path) as endpoint:
        home = await finished(endpoint, "f1", {"ok": True})
        before = (home / "responses.json").read_bytes()
        assert (await put(endpoint.client, "responses.json", b"{}")).status_code == 409
        sha = hashlib.sha256(b"{}").hexdigest()
        headers = {"Upload-Offset": "0", "Upload-Length": "2", "Upload-Digest": sha}
        url = f"{RESULTS}/f1/files/responses.json"
        assert (await endpoint.client.patch(url, content=b"{}", headers=headers)).status_code == 409
        assert (home / "responses.json").read_bytes() == before
        assert (await put(endpoint.client, "responses.json", before)).status_code == 200
        assert list(home.rglob("*.part")) == []


@pytest.mark.parametrize("phase", [Phase.DONE, Phase.FAILED, Phase.CANCELLED])
async def test_the_first_posted_result_of_a_task_stays_before_its_commit(tmp_path, phase):
    async with served(tmp_path) as endpoint:
        task_id = await endpoint.one()
        await endpoint.client.post(RESULTS, json={"task_id": task_id, "worker_id": "a", "result": {"n": 1}})
        await endpoint.stores.tasks.transition(task_id, StatusMark(1, phase))
        own = {"X-MLOC-Stage-Run": "5e0d6b4e-0000-4000-8000-000000000000"}
        for headers in ({}, own):
            other = {"task_id": task_id, "worker_id": "b", "result": {"n": 2}}
            answer = await endpoint.client.post(RESULTS, json=other, headers=headers)
            assert answer.status_code == 409
            assert answer.json()["detail"] == f"task {task_id} has ended with another result, which is kept"
        assert (await endpoint.client.get(f"{RESULTS}/{task_id}")).json()["worker_id"] == "a"


async def test_results_posted_at_once_leave_one_that_was_accepted(tmp_path):
    async with served(tmp_path) as endpoint:
        task_id = await endpoint.one()
        posts = [endpoint.client.post(RESULTS, json={"task_id": task_id, "result": {"n": n}}) for n in range(8)]
        codes = [answer.status_code for answer in await asyncio.gather(*posts)]
        kept = (await endpoint.client.get(f"{RESULTS}/{task_id}")).json()["result"]["n"]
        assert sorted(codes) == [200] + [409] * 7
        assert codes[kept] == 200


async def test_a_posted_result_shows_no_secret_of_the_spec(tmp_path):
    """MLOC workers return the whole spec of an echo task."""
    text = spec(output={"destination": {"type": "http", "url": "http://lab/x", "headers": {"X-Key": "hidden-value"}}})
    async with served(tmp_path, allowed_hosts="lab") as endpoint:
        task_id = await endpoint.one(text)
        posted = {
            "task_id": task_id,
            "result": {"echo": json.loads(text)["spec"], "n": 1},
            "metadata": {"a": "hidden-value"},
        }
        for _ in range(2):
            assert (await endpoint.client.post(RESULTS, json=posted)).status_code == 200
        answer = await endpoint.client.get(f"{RESULTS}/{task_id}")
        assert "hidden-value" not in answer.text
        assert answer.json()["result"]["echo"]["output"]["destination"]["headers"] == {"X-Key": "***"}


async def test_a_large_result_is_refused(tmp_path):
    async with served(tmp_path, max_result_bytes=100) as endpoint:
        answer = await endpoint.client.post(RESULTS, json={"task_id": "t", "result": {"x": "y" * 100}})
        assert (answer.status_code, "100 bytes" in answer.json()["detail"]) == (413, True)
