"""A site that migrates from MLOC: its own Redis, a stock Prefect server, and our services started one by one.

The services get MLOC's variables and only `MLOC_HOME` of ours.
"""

from __future__ import annotations

import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import redis

from tests.support.patience import FACT_SECONDS, START_SECONDS, STOP_SECONDS
from tests.support.prefect_api import environment, stock_server
from tests.support.up import MLOC
from tests.support.valkey import embedded_valkey

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

TOKEN = "dev-token"
BASE, MOST = 0.5, 1.2
"""Delays of retries: twice the base after the first failure, then the maximum."""
BEAT, TTL = 0.5, 45

WITHOUT_EFFECT = {
    "TASK_TOPIC": "other",
    "QUEUE_LOG_INTERVAL_SEC": "never",
    "HIGH_AVAIL_RATIO": "",
    "HOST_APP_RELOAD": "true",
    "HOST_METRICS_DIR": "/proc/none",
    "ORCHESTRATOR_METRICS_DIR": "/proc/none",
    "ORCHESTRATOR_DISPATCH_MODE": "static_worker",
    "ORCHESTRATOR_WORKER_SELECTION": "first_fit",
    "SCHEDULER_LAMBDA_INFERENCE": "x",
    "SCHEDULER_LAMBDA_TRAINING": "x",
    "SCHEDULER_LAMBDA_OTHER": "x",
    "SCHEDULER_SELECTION_JITTER": "x",
    "ENABLE_CONTEXT_REUSE": "false",
    "ENABLE_STAGE_WEIGHT_STICKINESS": "true",
    "WORKER_CACHE_TTL_SEC": "0",
    "ENABLE_TASK_MERGE": "true",
    "TASK_MERGE_MAX_BATCH_SIZE": "x",
    "ENABLE_ELASTIC_SCALING": "false",
    "ELASTIC_AUTO_DISABLE_IDLE_SEC": "0",
    "ELASTIC_AUTO_ENABLE_QUEUE_THRESHOLD": "0",
    "ELASTIC_AUTO_DISABLE_QUEUE_MAX": "0",
    "ELASTIC_AUTO_POLL_INTERVAL_SEC": "0",
    "ELASTIC_AUTO_TOGGLE_COOLDOWN_SEC": "0",
    "ELASTIC_AUTO_MIN_ACTIVE_WORKERS": "x",
    "WORKER_COST_PER_HOUR": "x",
    "WORKER_NETWORK_BANDWIDTH_BYTES_PER_SEC": "x",
    **dict.fromkeys(("UTU_LLM_TYPE", "SERPER_API_KEY", "JINA_API_KEY", "DB_URL"), "x"),
}
"""Variables that only MLOC reads, with values that would break any other reader."""


@dataclass(frozen=True)
class Part:
    """One running command."""

    command: tuple[str, ...]
    process: subprocess.Popen[bytes]
    log: Path


@dataclass(frozen=True)
class MovedSite:
    """The running site.

    Attributes:
        home: Directory of the site.
        redis_url: Its Redis, with the password.
        url: The endpoint with the variables of the first generation; it requires the token.
        open_url: The endpoint with those of the later generation, without a token, on another database.
        parts: The running commands, by name.
        env: Environment of a shell at this site, for curl and the client commands.
    """

    home: Path
    redis_url: str
    url: str
    open_url: str
    parts: Mapping[str, Part]
    env: Mapping[str, str]

    @property
    def http(self) -> httpx.Client:
        """A client with the token."""
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=FACT_SECONDS)

    def store(self) -> Any:
        """Return a client of the Redis."""
        return redis.Redis.from_url(self.redis_url, decode_responses=True)

    def shell(self, line: str) -> str:
        """Run a shell line with `mloc` on the path; return its output."""
        line = line.replace("mloc ", f"{' '.join(MLOC)} ") if line.startswith("mloc ") else line
        done = subprocess.run(
            ["sh", "-c", line], env=dict(self.env), capture_output=True, text=True, timeout=FACT_SECONDS, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def until(self, task_id: str, *statuses: str, seconds: float = 3 * FACT_SECONDS) -> dict[str, Any]:
        """Wait until a task has one of `statuses`; return its record.

        A stock Prefect server keeps its SQLite file locked for up to a minute, several times over, on a busy machine.
        """
        deadline = time.monotonic() + seconds
        with self.http as http:
            while (record := http.get(f"/api/v1/tasks/{task_id}").json())["status"] not in statuses:
                assert time.monotonic() < deadline, record
                time.sleep(0.05)
        return dict(record)


@contextmanager
def moved_site(home: Path) -> Iterator[MovedSite]:
    """Run the site until the block ends."""
    port, open_port, prefect_port = free_ports(3)
    # Our own variables are removed; tests of settings cover them.
    common = environment(home, f"http://127.0.0.1:{prefect_port}/api") | WITHOUT_EFFECT
    common = {k: v for k, v in common.items() if not k.startswith("MLOC_")} | {"MLOC_HOME": str(home)}
    results = str(home / "shared results")
    with ExitStack() as stack:
        valkey = stack.enter_context(embedded_valkey(home, port=26730))
        server_env = environment(home, common["PREFECT_API_URL"], PREFECT_SERVER_API_PORT=str(prefect_port))
        stack.enter_context(stock_server(server_env))
        redis_url = valkey.url(7)
        url, open_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{open_port}"
        logs = {"LOG_MAX_BYTES": "3_000", "LOG_BACKUP_COUNT": "1"}
        worker = {"REDIS_URL": redis_url, "RESULTS_DIR": results, "ORCHESTRATOR_BASE_URL": url}
        worker |= {"RETRY_BASE_DELAY_SEC": str(BASE), "RETRY_MAX_DELAY_SEC": str(MOST)}
        worker |= {"HEARTBEAT_INTERVAL_SEC": str(BEAT), "HEARTBEAT_TTL_SEC": str(TTL)}
        given = {
            "serve": (
                ("serve",),
                {
                    "REDIS_URL": redis_url,
                    "ORCHESTRATOR_TOKEN": TOKEN,
                    "PORT": str(port),
                    "ORCHESTRATOR_RESULTS_DIR": results,
                },
            ),
            "later": (
                ("serve",),
                {"REDIS_URL": valkey.url(8), "HOST_APP_HOST": "127.0.0.1", "HOST_APP_PORT": str(open_port)},
            ),
            "bridge": (
                ("bridge",),
                worker | logs | {"LOG_LEVEL": "debug", "LOG_FILE": str(home / "orchestrator.log")},
            ),
            "coordinator": (("worker", "start", "--coordinator-only"), worker),
            "worker": (
                ("worker", "start"),
                worker | {"WORKER_ID": "node-7", "WORKER_TAGS": "lab, fast", "HOST_APP_LOG_LEVEL": "error"},
            ),
        }
        parts = {
            name: stack.enter_context(part(home / f"{name}.out", common | env, *command))
            for name, (command, env) in given.items()
        }
        shell = common | {"MLOC_URL": url, "MLOC_TOKEN": TOKEN}
        site = MovedSite(home, redis_url, url, open_url, parts, shell)
        wait_ready(site)
        yield site


@contextmanager
def part(log: Path, env: Mapping[str, str], *command: str) -> Iterator[Part]:
    """Run one command of `mloc` until the block ends."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*MLOC, *command], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=dict(env), cwd=log.parent
        )
    try:
        yield Part(command, process, log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_ready(site: MovedSite, seconds: float = START_SECONDS) -> None:
    """Wait until both endpoints answer, the bridge is active and the worker is registered."""
    deadline = time.monotonic() + seconds
    while not _ready(site):
        for name, one in site.parts.items():
            assert one.process.poll() is None, f"{name} has ended: {one.log.read_text()}"
        assert time.monotonic() < deadline, {name: one.log.read_text()[-1000:] for name, one in site.parts.items()}
        time.sleep(0.1)


def _ready(site: MovedSite) -> bool:
    try:
        with site.http as http:
            known = [worker["worker_id"] for worker in http.get("/workers").json()]
        open_one = httpx.get(f"{site.open_url}/readyz").is_success
    except httpx.TransportError:
        return False
    return bool(known) and open_one and "is active" in site.parts["bridge"].log.read_text()


def free_ports(number: int) -> list[int]:
    """Return ports that are not in use."""
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    found = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return found
