"""docs/migration.md, row by row, at a site that sets MLOC's own variables and starts the parts one by one.

A row that no test here knows fails. The Prefect server is a stock one without Redis: events come by its websocket.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from contextlib import suppress
from datetime import datetime
from importlib.metadata import metadata
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from mloc_prefect.settings import MlocSettings
from tests.support.patience import FACT_SECONDS
from tests.support.pool import until
from tests.support.site import BASE, MOST, TOKEN, TTL, WITHOUT_EFFECT, MovedSite, moved_site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "migration.md").read_text(encoding="utf-8")

SPEC = """
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: moved}
spec:
  taskType: echo
  resources: {replicas: 1, hardware: {cpu: 1, memory: 64Mi}}
  echo: {}
  data: {message: hi}
"""

ELSEWHERE = {
    "HF_MODEL": "integration/test_transformers.py",
    "VLLM_MODEL": "unit/artifacts/test_prepared_models.py",
    "CUDA_VISIBLE_DEVICES": "integration/test_runtime.py",
    "MAX_AUTO_SHARDS": "unit/flow/test_sharding_dispatcher.py",
    "CPU_ONLY_WEIGHT": "unit/mloc_workers/test_worker_selection.py",
    "GPU_WEIGHT": "unit/mloc_workers/test_worker_selection.py",
    "LOW_AVAIL_RATIO": "unit/mloc_workers/test_worker_selection.py",
    "UTU_LLM_BASE_URL": "integration/test_agents.py",
    "UTU_LLM_MODEL": "integration/test_agents.py",
    "UTU_LLM_API_KEY": "integration/test_agents.py",
}
"""Variables whose effect needs a model, a GPU or several workers, and the tests that show it."""


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table whose first row begins with `heading`."""
    _, _, rest = PAGE.partition(f"\n| {heading} |")
    lines = rest.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


COMMANDS = {row[0]: row[1] for row in rows("MLOC")}
READ = {name: row[1].strip("`") for row in rows("variable of MLOC | setting here") for name in codes(row[0])}
NOT_READ = {name for row in rows("variable of MLOC | instead") for name in codes(row[0])}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MovedSite]:
    with moved_site(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture(scope="module")
def done(site: MovedSite) -> str:
    """A task that is DONE, submitted as the first row with curl has it."""
    (site.home / "task.yaml").write_text(SPEC)
    task_id = submitted(site, SPEC)
    site.until(task_id, "DONE")
    return task_id


def submitted(site: MovedSite, text: str) -> str:
    with site.http as http:
        answer = http.post("/api/v1/tasks", content=text, headers={"Content-Type": "text/yaml"})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["tasks"][0]["task_id"])


# --- commands ---------------------------------------------------------------------------------------------------------


def filled(site: MovedSite, line: str, task_id: str) -> str:
    """Return a line of the page for this site."""
    line = re.sub(r"\bID\b", task_id, line).replace("NAME", "responses.json").replace("DIR", str(site.home / "out"))
    line = line.replace("http://HOST:8000", site.url).replace("task.yaml", str(site.home / "task.yaml"))
    return re.sub(r"^curl ", f'curl -sSf -H "Authorization: Bearer {TOKEN}" ', line)


def run_both(site: MovedSite, left: str, right: str, task_id: str) -> list[str]:
    """Run what MLOC's users type and what the page names beside it; returns the outputs."""
    lines = [*codes(left), *(line for line in codes(right) if line.startswith(("mloc ", "curl ")))]
    return [site.shell(filled(site, line, task_id)) for line in lines]


def installs(site: MovedSite, left: str, right: str, task_id: str) -> None:
    """The extras are there, and what they ask for is what `make setup` has installed."""
    (wanted,) = [code.removeprefix("pip install ").strip("'") for code in codes(right) if code.startswith("pip ")]
    offline = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", wanted]
    said = subprocess.run(offline, capture_output=True, text=True, timeout=FACT_SECONDS, check=False)
    assert said.returncode == 0, said.stderr
    assert "does not provide the extra" not in said.stderr
    assert "Would install" not in said.stdout
    offered = set(metadata("mloc-prefect").get_all("Provides-Extra") or ())
    assert {name for code in codes(right) for name in re.findall(r"--extra (\w+)", code)} <= offered


def environments(site: MovedSite, left: str, right: str, task_id: str) -> None:
    (command, *_) = codes(right)
    assert command.removeprefix("mloc env create ") in site.shell("mloc env list").split()


def uses_the_redis(site: MovedSite, left: str, right: str, task_id: str) -> None:
    with site.store() as store:
        assert store.hget(f"mloc:task:{task_id}", "status") == "DONE"


def parts_run(site: MovedSite, left: str, right: str, task_id: str) -> None:
    running = {f"mloc {' '.join(part.command)}" for part in site.parts.values() if part.process.poll() is None}
    single = {code for code in codes(right) if not code.startswith("mloc up")}
    assert single
    assert single <= running
    with site.http as http:
        assert http.get("/readyz").json() == {"ok": True}


def submits(site: MovedSite, left: str, right: str, task_id: str) -> None:
    by_curl, by_us = run_both(site, left, right, task_id)
    assert json.loads(by_curl)["count"] == 1
    assert re.search(r"PENDING|WAITING|DISPATCHED", by_us)


def shows(site: MovedSite, left: str, right: str, task_id: str) -> None:
    for output in run_both(site, left, right, task_id):
        assert task_id[:8] in output


def shows_the_result(site: MovedSite, left: str, right: str, task_id: str) -> None:
    for output in run_both(site, left, right, task_id):
        assert '"ok": true' in output or output.strip().endswith("responses.json")
    assert json.loads((site.home / "out" / "responses.json").read_text())["echo"]["data"] == {"message": "hi"}


def shows_workers(site: MovedSite, left: str, right: str, task_id: str) -> None:
    for output in run_both(site, left, right, task_id):
        assert "node-7" in output


def cleans_up(site: MovedSite, left: str, right: str, task_id: str) -> None:
    with site.store() as store:
        store.sadd("workers:ids", "w-old")
        store.hset("worker:w-old", mapping={"worker_id": "w-old", "status": "IDLE"})
        (output,) = run_both(site, left, right, task_id)
        assert json.loads(output) == {"ok": True, "removed": 1}
        assert store.smembers("workers:ids") == {"node-7"}


def hears(site: MovedSite, left: str, right: str, task_id: str) -> None:
    """The words that `redis-cli` sends for that line, and the stream beside it, hear the same."""
    place = urlsplit(site.redis_url)
    (wanted,) = codes(left)
    (stream,) = [code for code in codes(right) if code.startswith("curl")]
    words = [["AUTH", place.password], wanted.upper().split()[1:2] + wanted.split()[2:]]
    line = "exec " + filled(site, stream.replace("curl -N", "curl --no-buffer --max-time 600"), task_id)
    with socket.create_connection((place.hostname, place.port), timeout=FACT_SECONDS) as link:
        for command in words:
            link.sendall("".join([f"*{len(command)}\r\n", *(f"${len(w)}\r\n{w}\r\n" for w in command)]).encode())
        reader = link.makefile("r", encoding="utf-8", newline="")
        while "workers.events\r\n" not in (said := reader.readline()):
            assert said
        listener = subprocess.Popen(["sh", "-c", line], stdout=subprocess.PIPE, text=True)
        assert listener.stdout is not None
        assert listener.stdout.readline(), "the stream says at once that it is there"
        mine = submitted(site, SPEC)
        site.until(mine, "DONE")
        found = []
        while not ("TASK_SUCCEEDED" in (said := reader.readline()) and mine in said):  # tasks before it end, too
            if said.startswith("{") and mine in said:
                found.append(json.loads(said))
    lines: list[str] = []
    for line in listener.stdout:
        lines.append(line)
        if mine in line and "TASK_SUCCEEDED" in line:
            break
    listener.terminate()
    listener.communicate(timeout=FACT_SECONDS)
    assert [message.get("type", "tasks") for message in found] == ["tasks", "TASK_STARTED", "STATUS"]
    streamed = [json.loads(one[6:]) for one in lines if one.startswith("data: ") and mine in one]
    assert streamed[:3] == found


def shows_logs(site: MovedSite, left: str, right: str, task_id: str) -> None:
    (line,) = [code for code in codes(right) if code.startswith("mloc logs")]
    output = site.shell(filled(site, line, task_id))
    assert "attempt 1 starts" in output
    assert (site.home / "orchestrator.log").is_file()


def cancels(site: MovedSite, left: str, right: str, task_id: str) -> None:
    for line in codes(right):
        slow = submitted(site, SPEC.replace("echo: {}", "echo: {delay: 60}"))
        site.shell(filled(site, line, slow))
        assert site.until(slow, "CANCELLED")["error"] == "cancelled"


ROWS: dict[str, Callable[[MovedSite, str, str, str], None]] = {
    "`uv sync`": installs,
    "`uv sync --extra ppo`": installs,
    "a vLLM in the same environment": environments,
    "`redis-server`": uses_the_redis,
    "`python orchestrator/main.py`, later `python host/main.py`": parts_run,
    "`python worker/main.py`": parts_run,
    "`curl -X POST http://HOST:8000/api/v1/tasks --data-binary @task.yaml`": submits,
    "`curl http://HOST:8000/api/v1/tasks`": shows,
    "`curl http://HOST:8000/api/v1/tasks/ID`": shows,
    "`curl http://HOST:8000/api/v1/results/ID`": shows_the_result,
    "`curl http://HOST:8000/api/v1/results/ID/files/NAME`": shows_the_result,
    "`curl http://HOST:8000/workers`": shows_workers,
    "`curl -X POST http://HOST:8000/admin/cleanup`": cleans_up,
    "`redis-cli subscribe tasks tasks.events workers.events`": hears,
    "reading `orchestrator.log`, `worker.log`": shows_logs,
    "no way to stop a task": cancels,
}


def test_every_row_of_the_commands_has_a_test() -> None:
    assert list(COMMANDS) == list(ROWS)


@pytest.mark.parametrize("left", ROWS)
def test_a_command(site: MovedSite, done: str, left: str) -> None:
    ROWS[left](site, left, COMMANDS[left], done)


# --- variables --------------------------------------------------------------------------------------------------------


def uses_the_token(site: MovedSite, done: str) -> None:
    assert httpx.get(f"{site.url}/workers", timeout=FACT_SECONDS).status_code == 401
    with site.http as http:
        assert http.get("/workers").status_code == 200


def shares_results(site: MovedSite, done: str) -> None:
    assert (site.home / "shared results" / done / "responses.json").is_file()
    assert not (site.home / "results" / done).exists()
    with site.http as http:
        assert http.get(f"/api/v1/results/{done}").json()["ok"] is True


def listens(site: MovedSite, part: str, address: str, url: str) -> None:
    sockets = psutil.Process(site.parts[part].process.pid).net_connections("inet")
    found = {tuple(one.laddr) for one in sockets if one.status == psutil.CONN_LISTEN}
    assert found == {(address, urlsplit(url).port)}


def logs_at(site: MovedSite, part: str, *levels: str) -> None:
    said = site.parts[part].log.read_text()
    assert {level for level in ("DEBUG", "INFO") if re.search(rf"\b{level}\b", said)} == set(levels)


def rotates_its_log(site: MovedSite, done: str) -> None:
    def sizes() -> dict[str, int]:
        """Return the sizes of the files; they may be renamed meanwhile."""
        with suppress(FileNotFoundError):
            return {file.name: file.stat().st_size for file in site.home.glob("orchestrator.log*")}
        return {}

    found = until(lambda: len(found := sizes()) > 1 and found, why=sizes)
    assert set(found) == {"orchestrator.log", "orchestrator.log.1"}
    assert max(found.values()) <= 3000


def waits_between_retries(site: MovedSite, done: str) -> None:
    task_id = submitted(site, SPEC.replace("echo: {}", "echo: {fail: boom}"))
    waits: dict[int, float] = {}
    with site.http as http:
        while (record := http.get(f"/api/v1/tasks/{task_id}").json())["status"] != "FAILED":
            if record["next_retry_at"]:
                due = datetime.fromisoformat(record["next_retry_at"]).timestamp()
                waits[record["retries"]] = due - record["last_queue_ts"]
            time.sleep(0.05)
    # Over the websocket any of them may be told too late to be seen here; the log of the stage has them all.
    wanted = {1: 2 * BASE, 2: MOST, 3: MOST}
    assert waits == pytest.approx({number: wanted[number] for number in waits}, abs=0.45)
    log = (site.home / "shared results" / task_id / "logs" / "stage.log").read_text()
    assert [float(text) for text in re.findall(r"next attempt in ([0-9.]+) s", log)] == list(wanted.values())
    assert (record["retries"], record["error"]) == (4, "RuntimeError: boom")


def beats(site: MovedSite, done: str) -> None:
    with site.store() as store, store.pubsub() as channels:
        channels.subscribe("workers.events")
        sent: list[float] = []

        def soon() -> bool:
            """Whether two beats came closer than by default, one in 5 s."""
            message = channels.get_message(timeout=0.1)
            if message and "HEARTBEAT" in str(message["data"]):
                sent.append(datetime.fromisoformat(json.loads(message["data"])["ts"]).timestamp())
            return any(after - before < 3 for before, after in pairwise(sent))

        until(soon, why=lambda: sent)
        until(lambda: TTL - 5 < store.ttl("worker:node-7:hb") <= TTL)


def has_its_name_and_tags(site: MovedSite, done: str) -> None:
    with site.http as http:
        (worker,) = http.get("/workers").json()
    assert (worker["worker_id"], worker["tags"]) == ("node-7", ["fast", "lab"])
    tagged = SPEC.replace("replicas: 1", "replicas: 1, tags: [fast]")
    assert site.until(submitted(site, tagged), "DONE")["assigned_worker"] == "node-7"


def delivers_to_the_orchestrator(site: MovedSite, done: str) -> None:
    headers = f'{{Authorization: "Bearer {TOKEN}"}}'
    target = f"{{destination: {{type: http, url: {site.url}/api/v1/results, headers: {headers}}}}}"
    task_id = submitted(site, SPEC + f"  output: {target}\n")
    site.until(task_id, "DONE")
    with site.http as http:
        envelope = http.get(f"/api/v1/results/{task_id}").json()
    assert envelope["task_id"] == task_id
    assert envelope["result"]["echo"]["data"] == {"message": "hi"}


VARIABLES: dict[str, Callable[[MovedSite, str], Any]] = {
    "REDIS_URL": lambda site, done: uses_the_redis(site, "", "", done),
    "ORCHESTRATOR_TOKEN": uses_the_token,
    "RESULTS_DIR": shares_results,
    "ORCHESTRATOR_RESULTS_DIR": shares_results,
    "PORT": lambda site, _: listens(site, "serve", "0.0.0.0", site.url),
    "HOST_APP_PORT": lambda site, _: listens(site, "later", "127.0.0.1", site.open_url),
    "HOST_APP_HOST": lambda site, _: listens(site, "later", "127.0.0.1", site.open_url),
    "LOG_LEVEL": lambda site, _: logs_at(site, "bridge", "DEBUG", "INFO"),
    "HOST_APP_LOG_LEVEL": lambda site, _: logs_at(site, "worker"),
    "LOG_FILE": rotates_its_log,
    "LOG_MAX_BYTES": rotates_its_log,
    "LOG_BACKUP_COUNT": rotates_its_log,
    "RETRY_BASE_DELAY_SEC": waits_between_retries,
    "RETRY_MAX_DELAY_SEC": waits_between_retries,
    "HEARTBEAT_INTERVAL_SEC": beats,
    "HEARTBEAT_TTL_SEC": beats,
    "WORKER_ID": has_its_name_and_tags,
    "WORKER_TAGS": has_its_name_and_tags,
    "ORCHESTRATOR_BASE_URL": delivers_to_the_orchestrator,
}


def test_every_variable_has_a_test() -> None:
    assert set(READ) == {*VARIABLES, *ELSEWHERE}
    assert set(WITHOUT_EFFECT) == NOT_READ
    for variable, test in ELSEWHERE.items():
        assert variable in (TESTS / test).read_text(encoding="utf-8"), f"{test} says nothing of {variable}"
    assert {setting for setting in READ.values() if setting} <= set(MlocSettings.model_fields)


@pytest.mark.parametrize("check", dict.fromkeys(VARIABLES.values()), ids=lambda check: check.__name__)
def test_a_variable_does_what_it_did(site: MovedSite, done: str, check: Callable[[MovedSite, str], Any]) -> None:
    check(site, done)
