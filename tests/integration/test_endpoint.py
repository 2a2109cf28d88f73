"""The endpoint as a process, on a real Valkey: curl, streams, signals, faults."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from mloc_prefect.store.backends import open_stores
from tests.support.counts import count
from tests.support.endpoint import SPEC, YAML
from tests.support.endpoint_process import EndpointProcess, endpoint, launch, popen
from tests.support.patience import FACT_SECONDS, START_SECONDS, STOP_SECONDS
from tests.support.valkey import embedded_valkey, start

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.services.valkey import EmbeddedValkey

TEMPLATES = Path(__file__).parents[2] / "templates"
TASKS = "/api/v1/tasks"
TOKEN = "dev-token"
SUBMISSIONS = count("endpoint_killed", small=150, full=1000)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("endpoint")


@pytest.fixture(scope="module")
def valkey(home: Path) -> Iterator[EmbeddedValkey]:
    with embedded_valkey(home, port=26579) as server:
        yield server


@pytest.fixture(scope="module")
def served(home: Path, valkey: EmbeddedValkey) -> Iterator[EndpointProcess]:
    with endpoint(home, valkey.url(), ORCHESTRATOR_TOKEN=TOKEN, MLOC_HOST="127.0.0.1") as running:
        yield running


@pytest.fixture
def client(served: EndpointProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=FACT_SECONDS) as made:
        yield made


def curl(*arguments: str) -> tuple[int, str]:
    """Return status and body."""
    done = subprocess.run(
        ["curl", "-sS", "-w", "\n%{http_code}", *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=FACT_SECONDS,
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def test_curl_submits_polls_uploads_and_downloads(served: EndpointProcess, tmp_path: Path):
    token = ("-H", f"Authorization: Bearer {TOKEN}")
    template = f"@{TEMPLATES / 'multi_stage.yaml'}"
    status, body = curl("-X", "POST", f"{served.url}{TASKS}", "--data-binary", template)
    assert (status, json.loads(body)) == (401, {"detail": "Missing bearer token"})
    status, body = curl(*token, "-X", "POST", f"{served.url}{TASKS}", "--data-binary", template)
    answer = json.loads(body)
    assert (status, answer["count"], [t["status"] for t in answer["tasks"]]) == (
        200,
        3,
        ["WAITING", "PENDING", "PENDING"],
    )
    task_id = answer["tasks"][0]["task_id"]
    status, body = curl(*token, f"{served.url}{TASKS}/{task_id}")
    assert (status, json.loads(body)["task_id"]) == (200, task_id)
    file = tmp_path / "a model.zip"
    file.write_bytes(os.urandom(300_000))
    status, body = curl(*token, "-F", f"file=@{file}", f"{served.url}/api/v1/results/{task_id}/files")
    assert status == 200
    assert Path(json.loads(body)["path"]).read_bytes() == file.read_bytes()
    got = tmp_path / "got"
    url = f"{served.url}/api/v1/results/{task_id}/files/a%20model.zip"
    assert curl(*token, "-o", str(got), "-C", "-", url)[0] == 200
    assert got.read_bytes() == file.read_bytes()
    got.write_bytes(file.read_bytes()[:100_000])
    assert curl(*token, "-o", str(got), "-C", "-", url)[0] == 206, "curl goes on where it stopped"
    assert got.read_bytes() == file.read_bytes()


def test_without_a_token(home: Path, valkey: EmbeddedValkey):
    with endpoint(home, valkey.url()) as running:
        assert running.url.startswith("http://127.0.0.1:")
        template = f"@{TEMPLATES / 'echo.yaml'}"
        status, body = curl("-X", "POST", f"{running.url}{TASKS}", "--data-binary", template)
        assert (status, json.loads(body)["ok"]) == (200, True)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"MLOC_HOST": "0.0.0.0"}, "without a token"),
        ({"MLOC_HOST": "192.0.2.1", "ORCHESTRATOR_TOKEN": "t"}, "cannot listen on 192.0.2.1"),
        ({"REDIS_URL": ""}, "needs Redis"),
        ({"REDIS_URL": "http://:s3cret@x"}, "the Redis URL cannot be read"),
    ],
)
def test_it_says_in_one_line_why_it_does_not_start(tmp_path: Path, variables, words):
    process = popen(tmp_path, **{"REDIS_URL": "redis://127.0.0.1:1", "PORT": "0", **variables})
    assert process.wait(START_SECONDS) == 4
    said = (tmp_path / "endpoint.log").read_text()
    assert said.startswith("error: ")
    assert words in said
    assert "Traceback" not in said
    assert "s3cret" not in said


def lines_of(response: httpx.Response, wanted: int, found: list[str], started: threading.Event) -> None:
    for line in response.iter_lines():
        started.set()  # the first line says that somebody listens, the headers come before that
        if line.startswith(("data: ", "id: ", "event: ")):
            found.append(line)
        if len(found) >= wanted:
            return


def hear(client: httpx.Client, url: str, wanted: int, *, started: threading.Event, **options) -> list[str]:
    found: list[str] = []
    with client.stream("GET", url, **options) as response:
        assert response.status_code == 200
        lines_of(response, wanted, found, started)
    return found


def test_events_are_heard_and_gone_on_with(client: httpx.Client, valkey: EmbeddedValkey):
    async def publish(*numbers: int) -> None:
        stores = open_stores(valkey.url())
        for number in numbers:
            for channel in ("tasks.events", "workers.events"):
                await stores.publisher.publish(channel, {"n": number, "task_id": "events"})
        await stores.close()

    url = "/api/v1/events?channel=tasks.events&task_id=events"
    found: list[str] = []
    started = threading.Event()
    reader = threading.Thread(target=lambda: found.extend(hear(client, url, 6, started=started)))
    reader.start()
    assert started.wait(FACT_SECONDS)
    asyncio.run(publish(1, 2, 3))
    reader.join(FACT_SECONDS)
    assert [line for line in found if line.startswith("data")] == [
        f'data: {{"n": {number}, "task_id": "events"}}' for number in (1, 2)
    ]
    last = next(line for line in found if line.startswith("id")).removeprefix("id: ")
    again = hear(client, url, 6, started=started, headers={"last-event-id": last})
    assert [json.loads(line[6:])["n"] for line in again if line.startswith("data")] == [2, 3]


def test_a_log_is_followed_to_the_end_of_its_task(client: httpx.Client, home: Path):
    task_id = client.post(TASKS, content=SPEC, headers=YAML).json()["tasks"][0]["task_id"]
    log = home / "results" / task_id / "logs" / "stage.log"
    log.parent.mkdir(parents=True)
    log.write_text("one\n")
    found: list[str] = []
    started = threading.Event()
    reader = threading.Thread(
        target=lambda: found.extend(hear(client, f"{TASKS}/{task_id}/logs?follow=true", 6, started=started))
    )
    reader.start()
    assert started.wait(FACT_SECONDS)
    with log.open("a") as file:
        file.write("two\n")
    client.post("/api/v1/results", json={"task_id": task_id, "result": {}})
    reader.join(FACT_SECONDS)
    assert found == ["id: 4", "data: one", "id: 8", "data: two", "event: end", 'data: {"status": "DONE"}']


def test_clients_that_go_leave_no_trace(client: httpx.Client, home: Path):
    task_id = client.post(TASKS, content=SPEC, headers=YAML).json()["tasks"][0]["task_id"]
    for url in ("/api/v1/events", f"{TASKS}/{task_id}/logs?follow=true"):
        with client.stream("GET", url) as response:
            assert next(response.iter_lines()).startswith(":")
    time.sleep(0.3)
    assert client.get("/healthz").status_code == 200
    assert "Traceback" not in (home / "endpoint.log").read_text()


def test_a_signal_ends_it_cleanly_while_clients_listen(home: Path, valkey: EmbeddedValkey):
    running = launch(home, valkey.url())
    ended = threading.Event()
    started = threading.Event()

    def listen() -> None:
        with httpx.Client(base_url=running.url, timeout=FACT_SECONDS) as made:
            hear(made, "/api/v1/events", 1, started=started)
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    assert started.wait(FACT_SECONDS)
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(STOP_SECONDS) == 0
    assert ended.wait(FACT_SECONDS), "the stream was ended, not cut off"


def test_an_upload_takes_little_memory(client: httpx.Client, served: EndpointProcess):
    block = os.urandom(1 << 20)
    megabytes = 192

    def body() -> Iterator[bytes]:
        yield b'--xx\r\nContent-Disposition: form-data; name="file"; filename="big"\r\n\r\n'
        for _ in range(megabytes):
            yield block
        yield b"\r\n--xx--\r\n"

    before = served.now_bytes()
    answer = client.post(
        "/api/v1/results/big/files", content=body(), headers={"content-type": "multipart/form-data; boundary=xx"}
    )
    assert answer.status_code == 200
    path = Path(answer.json()["path"])
    assert path.stat().st_size == megabytes << 20
    with client.stream("GET", "/api/v1/results/big/files/big") as response:
        assert sum(len(piece) for piece in response.iter_raw()) == megabytes << 20
    grown = served.peak_bytes() - before
    path.unlink()
    assert grown < 64 << 20


def test_a_large_upload_is_refused_before_it_is_sent(home: Path, valkey: EmbeddedValkey, tmp_path: Path):
    file = tmp_path / "large"
    file.write_bytes(bytes(3_000_000))
    with endpoint(home, valkey.url(), MLOC_MAX_UPLOAD_BYTES="1000000") as running:
        status, body = curl(
            "-F", f"file=@{file}", "-H", "Expect: 100-continue", f"{running.url}/api/v1/results/x/files"
        )
        assert (status, "1000000 bytes" in body) == (413, True)


def test_redis_goes_and_comes_back(tmp_path: Path):
    with (
        embedded_valkey(tmp_path, port=26589) as valkey,
        endpoint(tmp_path, valkey.url()) as running,
        httpx.Client(base_url=running.url, timeout=FACT_SECONDS) as client,
    ):
        first = client.post(TASKS, content=SPEC, headers=YAML).json()["tasks"][0]["task_id"]
        port = httpx.URL(valkey.url().replace("redis://", "http://")).port
        os.kill(valkey.poll().pid, signal.SIGKILL)  # type: ignore[union-attr]
        answers = [
            client.post(TASKS, content=SPEC, headers=YAML),
            client.get(TASKS),
            client.post("/api/v1/results", json={"task_id": first, "result": {}}),
            client.get("/metrics"),
            client.get("/workers"),
        ]
        for answer in answers:
            assert answer.status_code == 503, answer.text
            assert f"Redis at 127.0.0.1:{port}" in answer.json()["detail"]
            assert answer.headers["retry-after"]
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        valkey.stop_now()
        start(valkey)
        deadline = time.monotonic() + FACT_SECONDS
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        records = client.get(TASKS).json()
        assert [(r["task_id"], r["status"]) for r in records] == [(first, "WAITING")], "nothing half-done"
        assert client.post(TASKS, content=SPEC, headers=YAML).status_code == 200


def test_a_restart_changes_nothing_that_clients_see(tmp_path: Path):
    with embedded_valkey(tmp_path, port=26599) as valkey:
        seen = []
        for first in (True, False):
            with (
                endpoint(tmp_path, valkey.url()) as running,
                httpx.Client(base_url=running.url, timeout=FACT_SECONDS) as client,
            ):
                if first:
                    task_id = client.post(TASKS, content=SPEC, headers=YAML).json()["tasks"][0]["task_id"]
                    client.post("/api/v1/results", json={"task_id": task_id, "result": {"a": 1}})
                paths = (TASKS, f"{TASKS}/{task_id}", f"/api/v1/results/{task_id}")
                seen.append([client.get(path).json() for path in paths])
        assert seen[0] == seen[1]


@pytest.mark.counted
async def test_a_killed_endpoint_loses_and_doubles_nothing_that_it_accepted(tmp_path: Path):
    """Clients submit to two processes; both are killed in the middle, and clients send again with their keys."""
    with embedded_valkey(tmp_path, port=26609) as valkey, ExitStack() as stack:
        starts = [asyncio.to_thread(launch, tmp_path, valkey.url()) for _ in range(4)]
        *running, spare, last = processes = await asyncio.gather(*starts)
        for process in processes:
            stack.callback(process.kill)
        accepted: dict[int, str] = {}
        waiting = iter(range(SUBMISSIONS))

        async def submit(client: httpx.AsyncClient) -> None:
            for number in waiting:
                headers = {**YAML, "idempotency-key": f"n{number}"}
                while True:
                    url = running[number % 2].url
                    try:
                        answer = await client.post(f"{url}{TASKS}", content=SPEC, headers=headers)
                    except httpx.TransportError:
                        await asyncio.sleep(0.05)
                        continue
                    assert answer.status_code == 200
                    accepted[number] = answer.json()["submission_id"]
                    break

        async with httpx.AsyncClient(timeout=10) as client:
            clients = [asyncio.create_task(submit(client)) for _ in range(8)]
            for place, successor in enumerate((spare, last)):
                while len(accepted) < SUBMISSIONS * (place + 1) // 3:
                    await asyncio.sleep(0.002)
                running[place].kill()
                await asyncio.sleep(0.2)  # clients find nobody there
                running[place] = successor
            await asyncio.gather(*clients)
        for one in running:
            one.kill()  # what they had not answered is not finished any more
        started, recorded = await journal_and_records(valkey.url())
    assert len(set(accepted.values())) == SUBMISSIONS
    assert started == sorted(accepted.values()), "each is run exactly once"
    assert recorded == sorted(accepted.values()), "none is half-done"


async def journal_and_records(url: str) -> tuple[list[str], list[str]]:
    """Return the submissions of all journal entries, as their consumer gets them, and those of all records."""
    stores = open_stores(url)
    started: list[str] = []
    while batch := await stores.journal.read("test", count=500):
        for entry in batch:
            started.append(entry.submission_id)
            await stores.journal.ack(entry)
    recorded = [record.submission_id or "" for record in await stores.tasks.page(brief=True)]
    await stores.close()
    return sorted(started), sorted(recorded)
