"""`mloc up` as users start it: curl, Redis subscribers, dying parts, restarts, signals, other machines."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import url2pathname

import httpx
import pytest
import redis

from tests.support.counts import count
from tests.support.patience import FACT_SECONDS
from tests.support.up import MLOC, Up, kill, running_up
from tests.support.up_client import curl, root_runs, submit_echo, wait_ended

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
ECHO = ROOT / "templates" / "echo.yaml"
SAMPLES = ROOT / "samples"
PORT = 27100

SUBMISSIONS = count("up-kill", 20, 1000)

QUICK = """
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: quick}
spec:
  taskType: echo
  resources: {replicas: 1, hardware: {cpu: 1, memory: 64Mi}}
  data: {message: hi}
"""
ROWS = QUICK.replace(
    "data: {message: hi}",
    """echo: {row_delay: 0.4}
  data: {type: list, items: [a, b, c, d, e, f, g, h, i, j, k, l, m, n]}""",
)

SLOW = """
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: slow}
spec:
  taskType: echo
  resources: {replicas: 1, hardware: {cpu: 1, memory: 64Mi}}
  echo: {delay: 60}
  data: {message: hi}
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("up") / "home", PORT) as up:
        yield up


def test_the_summary_names_the_addresses_and_a_command_that_works(up):
    text = up.wait_shown("| curl")
    (line,) = [line for line in text.splitlines() if "| curl" in line]
    command = line.partition("│")[2].strip().replace("mloc templates", f"{' '.join(MLOC)} templates")
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, env=up.env, timeout=FACT_SECONDS, check=False
    )
    assert json.loads(done.stdout)["count"] == 2, done
    assert f"export PREFECT_API_URL=http://127.0.0.1:{up.port + 1}/api" in text


def test_prefect_wants_the_login_and_the_printed_page_has_it(up):
    (printed,) = [line for line in up.wait_shown("log in").splitlines() if "log in" in line]
    page = Path(url2pathname(printed.partition("file://")[2]))
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    link = re.search(r'href="([^"]+)#([^"]+)"', page.read_text())
    assert link is not None
    assert httpx.get(link[1], timeout=FACT_SECONDS).status_code == 200
    api = up.state().api_url
    for path in ("/flow_runs/filter", "/deployments/filter", "/variables/filter", "/logs/filter"):
        assert httpx.post(f"{api}{path}", json={}, timeout=FACT_SECONDS).status_code == 401
    answer = httpx.post(
        f"{api}/flows/filter", json={}, headers={"authorization": f"Basic {link[2]}"}, timeout=FACT_SECONDS
    )
    assert answer.status_code == 200
    assert ":".join(up.login) not in up.log.read_text()
    for command in (("run", str(ECHO)), ("worker", "start")):
        done = up.run(*command, MLOC_HOME=str(up.home.parent / "other"), PREFECT_API_URL=api)
        assert "wants another login\n  help: set PREFECT_API_AUTH_STRING" in done.stderr


def sample(up: Up, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "MLOC_URL": up.url, "POLL_SECONDS": "0.2"}
    command = [str(SAMPLES / name), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=FACT_SECONDS, check=False)


def test_the_shell_samples(up, tmp_path):
    done = sample(up, "run.sh", str(ROOT / "templates" / "echo.yaml"), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*/responses.json"))) == 2
    task_id = next((tmp_path / "out").iterdir()).name
    assert json.loads(sample(up, "upload.sh", task_id, str(ROOT / "README.md")).stdout)["ok"] is True
    workers = sample(up, "workers.sh")
    assert workers.stdout.startswith('{"ok":true}')
    listened = sample(up, "listen.sh", "1")
    assert (listened.returncode, listened.stderr) == (0, "")


def test_the_shell_samples_say_what_is_wrong_and_cancel(up, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("apiVersion: mloc/v1\n")
    refused = sample(up, "submit.sh", str(bad))
    assert refused.returncode == 2
    assert "Missing required field: kind" in refused.stderr
    slow = tmp_path / "slow.yaml"
    slow.write_text(SLOW)
    task_id = sample(up, "submit.sh", str(slow)).stdout.strip()
    assert task_id in sample(up, "cancel.sh", task_id).stdout
    ended = sample(up, "poll.sh", task_id)
    assert (ended.returncode, ended.stdout) == (5, f"{task_id} CANCELLED\n")
    unknown = sample(up, "poll.sh", "nope")
    assert unknown.returncode == 2
    assert "not found" in unknown.stderr


def test_the_client_commands(up, tmp_path):
    sent = up.run("submit", str(ROOT / "templates" / "echo.yaml"), "--watch", "--json")
    assert sent.returncode == 0, sent.stderr
    answer = json.loads(sent.stdout)
    task_id = answer["tasks"][0]["task_id"]
    assert "DONE" in up.run("status", task_id[:13]).stdout
    assert task_id[:8] in up.run("list").stdout
    assert up.run("watch", answer["submission_id"]).returncode == 0
    assert up.run("logs", task_id).stdout == up.run("logs", task_id, "-f").stdout != ""
    saved = up.run("results", answer["submission_id"], "-o", str(tmp_path / "out"))
    assert saved.returncode == 0, saved.stderr
    assert (tmp_path / "out" / "first" / "responses.json").is_file()
    assert "IDLE" in up.run("workers").stdout
    assert up.run("status", "zzz").returncode == 2
    away = up.run("list", MLOC_URL="http://127.0.0.1:9")
    assert (away.returncode, len(away.stderr.splitlines())) == (4, 2)


def test_ps_knows_it_and_a_second_one_is_refused(up):
    shown = up.run("ps").stdout
    assert f"mloc up  process {up.process.pid}" in shown
    assert json.loads(up.run("ps", "--json").stdout)["up"]["ready"] is True
    second = up.run("up")
    assert second.returncode == 4
    assert f"`mloc up` runs already for {up.home} (process {up.process.pid}, {up.url})" in second.stderr
    assert "mloc down" in second.stderr


def test_a_port_in_use_is_one_clear_line(up, tmp_path):
    other = up.run("up", MLOC_HOME=str(tmp_path / "other"))
    assert other.returncode == 4
    assert f"port {up.port} of 127.0.0.1 is in use by another program" in other.stderr
    assert other.stdout == ""


def test_redis_and_prefect_of_the_user_are_used_instead(up, tmp_path):
    password = (up.home / "valkey" / "password").read_text().strip()
    servers = {
        "REDIS_URL": f"redis://:{password}@127.0.0.1:{up.port + 2}/5",
        **up.prefect_env,
        "RESULTS_DIR": str(up.home / "results"),  # the worker of the first one does the work
    }
    with running_up(tmp_path / "home", PORT + 30, "--no-worker", **servers) as other:
        assert set(other.state().parts) == {"endpoint", "bridge", "worker"}
        assert password not in other.log.read_text()
        ids = submit_echo(other)
        assert set(wait_ended(other.url, ids).values()) == {"DONE"}
        assert other.end(signal.SIGHUP) == 0


@pytest.mark.counted
@pytest.mark.timeout(600 + 4 * SUBMISSIONS)
def test_while_every_part_is_killed_once_each_accepted_submission_runs_once(up):
    victims = list(before := up.state().parts)
    accepted: dict[str, str] = {}
    with httpx.Client(base_url=up.url, timeout=FACT_SECONDS) as client:
        for number in range(SUBMISSIONS):
            if victims and number % max(1, SUBMISSIONS // 5) == 2:
                os.kill(before[victims.pop()], signal.SIGKILL)
            answer = persistently(client, f"kill-{number}")
            accepted[answer["submission_id"]] = answer["tasks"][0]["task_id"]
    assert (len(accepted), victims) == (SUBMISSIONS, [])
    assert set(wait_ended(up.url, list(accepted.values()), FACT_SECONDS + 3 * SUBMISSIONS).values()) == {"DONE"}
    assert not set(before.values()) & set(up.state().parts.values())
    roots = Counter(tag for run in root_runs(up) for tag in run["tags"] if tag.startswith("mloc-submission:"))
    assert {roots[f"mloc-submission:{submission}"] for submission in accepted} == {1}
    runs = sum(roots[f"mloc-submission:{submission}"] for submission in accepted)
    assert runs == SUBMISSIONS


def persistently(client: httpx.Client, key: str) -> dict[str, Any]:
    """Submit one task as a careful client does: the same key until there is an answer."""
    deadline = time.monotonic() + FACT_SECONDS
    headers = {"Content-Type": "text/yaml"}
    while True:
        try:
            answer = client.post("/api/v1/tasks", content=QUICK, headers=headers | {"Idempotency-Key": key})
            if answer.status_code == 200:
                return dict(answer.json())
            assert answer.status_code == 503, answer.text
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, f"no answer to {key}"
        time.sleep(0.05)


def test_ctrl_c_leaves_nothing_and_the_next_one_goes_on_where_it_was(up):
    done = submit_echo(up)[1]
    wait_ended(up.url, [done])
    records = httpx.get(f"{up.url}/api/v1/tasks", timeout=FACT_SECONDS).json()
    (task,) = json.loads(curl("-X", "POST", f"{up.url}/api/v1/tasks", "--data-binary", ROWS))["tasks"]
    rows = up.home / "results" / task["task_id"] / "attempts" / "1-1" / "items.jsonl"
    deadline = time.monotonic() + FACT_SECONDS
    while not rows.is_file() or rows.read_text().count("\n") < 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert up.end(signal.SIGINT) == 0
    up.wait_nothing_left()
    _, stopping, said = up.log.read_text().rpartition("stopping; once more to end everything at once")
    assert stopping
    assert "Traceback" not in said, said
    assert "mloc up" not in up.run("ps").stdout
    state = up.start()
    assert (state.url, state.api_url) == (up.url, f"http://127.0.0.1:{up.port + 1}/api")
    now = httpx.get(f"{up.url}/api/v1/tasks", timeout=FACT_SECONDS).json()
    assert [r["task_id"] for r in now] == [*(r["task_id"] for r in records), task["task_id"]]
    assert now[: len(records)] == records
    assert httpx.get(f"{up.url}/api/v1/results/{done}", timeout=FACT_SECONDS).status_code == 200
    # What ran when it was ended goes on: the rows that were there are not computed again.
    assert wait_ended(up.url, [task["task_id"]]) == {task["task_id"]: "DONE"}
    attempts = sorted(rows.parents[1].glob("*/items.jsonl"))
    assert sum(file.read_text().count("\n") for file in attempts) == 14
    assert len(attempts) == 2


def test_killed_with_9_nothing_is_left(up):
    assert up.process is not None
    up.process.kill()
    up.process.wait()
    up.process = None
    up.wait_nothing_left()


def test_other_machines_need_the_secrets(tmp_path):
    """Started as a script does it, with `&`, which leaves SIGINT ignored."""
    up = Up(tmp_path / "home", PORT + 10)
    try:
        from tests.support.server import prepare_home

        prepare_home(up.home)
        script = f"{' '.join(MLOC)} up --no-worker --host 0.0.0.0 > {up.log} 2>&1 & echo $!"
        started = subprocess.run(
            ["sh", "-c", script], env=up.env, capture_output=True, text=True, timeout=FACT_SECONDS, check=False
        )
        pid = int(started.stdout)
        state = up.wait_ready()
        secrets = up.home / "secrets"
        token = (secrets / "token").read_text().strip()
        auth = (secrets / "prefect-auth").read_text().strip()
        assert {f.name: stat.S_IMODE(f.stat().st_mode) for f in secrets.iterdir()} == dict.fromkeys(
            ("token", "prefect-auth", "prefect.html", "join.env"), 0o600
        )
        shown = up.wait_shown(str(secrets / "token"))
        assert token not in shown
        assert auth.partition(":")[2] not in shown
        tasks = f"{up.url}/api/v1/tasks"
        assert httpx.get(tasks, timeout=FACT_SECONDS).status_code == 401
        assert httpx.get(tasks, headers={"Authorization": "Bearer no"}, timeout=FACT_SECONDS).status_code == 403
        assert httpx.post(f"{state.api_url}/flows/filter", json={}, timeout=FACT_SECONDS).status_code == 401
        user, _, password = auth.partition(":")
        assert (
            httpx.post(
                f"{state.api_url}/flows/filter", json={}, auth=(user, password), timeout=FACT_SECONDS
            ).status_code
            == 200
        )
        with pytest.raises(redis.exceptions.AuthenticationError):
            redis.Redis(port=up.port + 2).ping()
        ids = submit_echo(up, "-H", f"Authorization: Bearer {token}")
        # Nobody here can run them: they wait, and say why.
        record = httpx.get(
            f"{tasks}/{ids[0]}", headers={"Authorization": f"Bearer {token}"}, timeout=FACT_SECONDS
        ).json()
        assert record["status"] in {"PENDING", "WAITING"}
        assert ids[0][:8] in up.run("list").stdout  # finds the token by itself
        secret_texts = [token, auth, (up.home / "valkey" / "password").read_text().strip()]
        for text in secret_texts:
            assert not [line for line in up.left_over() if text in line]
        os.kill(pid, signal.SIGTERM)
        up.wait_nothing_left()
    finally:
        kill(up)


def test_a_service_without_a_password_is_refused_beside_an_open_endpoint(tmp_path):
    up = Up(tmp_path / "home", PORT + 20)
    redis_url = up.run("up", "--host", "0.0.0.0", REDIS_URL="redis://redis.lab:6379/0")
    assert redis_url.returncode == 4
    assert "needs a Redis with a password" in redis_url.stderr
    prefect = up.run("up", "--host", "0.0.0.0", PREFECT_API_URL="http://prefect.lab:4200/api")
    assert prefect.returncode == 4
    assert "PREFECT_API_AUTH_STRING is not set" in prefect.stderr
