"""`mloc run` as a user has it: a process, its output piped or on a terminal, its exit code, Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from tests.support.patience import FACT_SECONDS
from tests.support.server import prepare_home
from tests.support.smollm import prepared_home

if TYPE_CHECKING:
    from collections.abc import Iterator

MLOC = str(Path(sys.executable).parent / "mloc")
ROOT = Path(__file__).parents[2]
PAGE = re.compile(r"(http://[^ ]+)/runs/flow-run/([0-9a-f-]{36})")

SLOW = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: slow}
spec:
  taskType: echo
  resources: {replicas: 1, hardware: {cpu: 1, memory: 64Mi}}
  data: {type: list, items: [ITEMS]}
  echo: {row_delay: 0.6}
  stages: [{name: one}, {name: two}]
""".replace("ITEMS", ", ".join(f"row{number}" for number in range(500)))
MISTAKES = """\
apiVersion: mloc/v1
kind: InferenceTask
metadata: {name: mistakes}
spec:
  taskType: inference
  resources: {replicas: 1, hardware: {cpu: 1, memory: 64Mi}}
  model: {source: {identifier: HuggingFaceTB/SmolLM2-135M-Instruct}}
  data: {type: dataset, url: DIR/rows.jsonl, column: question}
  graph:
    nodes:
      - {name: model, spec: {model: {source: {identifier: no/such-model}}}}
      - {name: column, spec: {data: {column: answer}}}
      - {name: empty, spec: {data: {url: DIR/empty.jsonl}}}
"""


@dataclass(frozen=True)
class Cli:
    """The command with a state directory of its own."""

    home: Path
    env: dict[str, str]

    def __call__(self, *arguments: str, text: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [MLOC, *arguments],
            capture_output=True,
            text=True,
            input=text,
            env={**self.env, **env},
            cwd=ROOT,
            timeout=240,
            check=False,
        )

    @property
    def login(self) -> tuple[str, str]:
        """User and password of the Prefect server of `mloc run`."""
        user, _, password = (self.home / "secrets" / "prefect-auth").read_text().strip().partition(":")
        return user, password

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [MLOC, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.env, cwd=ROOT
        )

    def on_a_terminal(self, *arguments: str) -> tuple[int, str]:
        """Run under a pseudo-terminal of 120 columns; returns the exit code and everything written."""
        parent, child = pty.openpty()
        env = {**self.env, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
        process = subprocess.Popen([MLOC, *arguments], stdin=child, stdout=child, stderr=child, env=env, cwd=ROOT)
        os.close(child)
        chunks: list[bytes] = []
        while chunk := _read(parent):
            chunks.append(chunk)
        os.close(parent)
        return process.wait(timeout=240), b"".join(chunks).decode()

    def ps(self) -> dict:
        return json.loads(self("ps", "--json").stdout)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # EIO: the other end has gone
        return b""


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    home = tmp_path_factory.mktemp("cli") / "home"
    prepare_home(home)
    foreign = ("MLOC_", "PREFECT_", "RESULTS_DIR", "ORCHESTRATOR_", "FORCE_COLOR", "NO_COLOR")
    env = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    env |= {
        "MLOC_HOME": str(home),
        "MLOC_MIRRORS": str(prepared_home() / "mirrors.yaml"),
        "MLOC_SERVER_PORT": "24700",
        "HF_HUB_OFFLINE": "1",
    }
    command = Cli(home, env)
    yield command
    ended = command("down")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip().endswith(")"), ended.stdout
    assert command("down").stdout == "nothing was running\n"


def last_object(output: str) -> dict:
    return json.loads(output.splitlines()[-1])


def state_of(cli: Cli, api: str, run_id: str) -> str:
    return httpx.get(f"{api}/api/flow_runs/{run_id}", auth=cli.login, timeout=FACT_SECONDS).json()["state"]["name"]


def test_json_is_one_object_on_stdout_and_progress_goes_to_stderr(cli: Cli):
    done = cli("run", "templates/echo.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    result = last_object(done.stdout)
    assert set(result) == {"ok", "flow_run_id", "tasks"}
    assert result["ok"] is True
    assert [set(t) for t in result["tasks"]] == [{"node", "task_id", "status", "result_path", "error"}] * 2
    assert [(t["node"], t["status"], t["error"]) for t in result["tasks"]] == [
        ("first", "DONE", None),
        ("second", "DONE", None),
    ]
    second = json.loads(Path(result["tasks"][1]["result_path"]).read_text())
    assert second["echo"]["data"]["numbers"] == [1, 2, 3]
    page = PAGE.search(done.stderr)
    assert page is not None
    assert page[2] == result["flow_run_id"]
    assert state_of(cli, page[1], page[2]) == "Completed"
    assert "second: DONE" in done.stderr
    assert "Beginning flow run" not in done.stderr  # Prefect's own lines


def test_a_real_model_answers_on_a_terminal_and_again_from_the_warm_host(cli: Cli):
    short = ("run", "templates/quickstart.yaml", "--set", "spec.inference.max_tokens=8")
    code, screen = cli.on_a_terminal(*short)
    assert code == 0, screen
    assert "\x1b[" in screen  # drawn in place
    assert re.search(r"RUNNING", screen)
    assert re.search(r"3/3", screen)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen)
    assert "What is the capital of France?" in plain
    assert "Paris" in plain
    assert PAGE.search(plain)
    path = re.search(r"results: (\S+/responses\.json)", plain)
    assert path is not None
    assert len(json.loads(Path(path[1]).read_text())["items"]) == 3
    assert "done: 1 of 1 stages" in plain
    first = [h["pid"] for h in cli.ps()["hosts"] if "transformers" in h["executor"]]

    again = cli(*short)
    assert again.returncode == 0, again.stderr
    assert "Paris" in again.stdout
    assert "\x1b" not in again.stdout
    assert re.search(r"^\d\d:\d\d:\d\d  quickstart: DONE in ", again.stdout, re.MULTILINE)
    assert [h["pid"] for h in cli.ps()["hosts"] if "transformers" in h["executor"]] == first


def results_of(cli: Cli, template: str, *, max_tokens: int = 8) -> dict[str, dict]:
    """Run a template on the small model; returns the result of each stage by its name."""
    done = cli("run", f"templates/{template}.yaml", "--json", "--set", f"spec.inference.max_tokens={max_tokens}")
    assert done.returncode == 0, done.stderr
    tasks = last_object(done.stdout)["tasks"]
    assert {t["status"] for t in tasks} == {"DONE"}
    return {t["node"]: json.loads(Path(t["result_path"]).read_text()) for t in tasks}


def test_a_dataset_is_answered_row_by_row(cli: Cli):
    (result,) = results_of(cli, "dataset_inference").values()
    assert [item["index"] for item in result["items"]] == list(range(len(result["items"])))
    questions = [json.loads(line) for line in (ROOT / "templates/data/questions.jsonl").read_text().splitlines()]
    texts = [str(value) for row in questions for value in row.values()]
    assert all(any(text in item["prompt"] for text in texts) for item in result["items"])


def test_stages_read_what_earlier_stages_answered(cli: Cli):
    results = results_of(cli, "multi_stage")
    drafts = [item["output"] for item in results["draft"]["items"]]
    assert all(drafts)
    for item, draft in zip(results["review"]["items"], drafts, strict=True):
        assert item["prompt"].endswith(draft)
    title = results["title"]["items"][0]["prompt"]
    assert all(text in title for text in (*drafts, results["review"]["items"][0]["output"]))


def test_a_graph_template_puts_both_branches_into_one_prompt(cli: Cli):
    results = results_of(cli, "graph")
    (verdict,) = results["verdict"]["items"]
    for label, branch in (("In favour", "for"), ("Against", "against")):
        first_line = results[branch]["items"][0]["output"].strip().splitlines()[0]
        assert f"\u2022 {label}: {first_line}" in verdict["prompt"]
    assert verdict["output"]


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "page"])
def test_an_interrupt_cancels_the_run_and_leaves_nothing_of_it(cli: Cli, tmp_path: Path, how: str):
    (tmp_path / "slow.yaml").write_text(SLOW)
    process = cli.start("run", str(tmp_path / "slow.yaml"), "--json")
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if "1/500 rows" in line:  # the first progress is always told
            break
    if how == "page":
        running = PAGE.search("".join(lines))
        assert running is not None
        cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
        route = f"{running[1]}/api/flow_runs/{running[2]}/set_state"
        httpx.post(route, json=cancelling, auth=cli.login, timeout=FACT_SECONDS).raise_for_status()
    else:
        process.send_signal(signal.Signals[how])
    stdout, rest = process.communicate(timeout=FACT_SECONDS)
    output = "".join(lines) + rest
    assert process.returncode == 130, output
    assert "Traceback" not in output
    result = last_object(stdout)
    assert result["ok"] is False
    assert [t["status"] for t in result["tasks"]] == ["CANCELLED", "CANCELLED"]
    page = PAGE.search(output)
    assert page is not None
    assert state_of(cli, page[1], page[2]) == "Cancelled"
    below = {"flow_runs": {"parent_flow_run_id": {"any_": [page[2]]}}}
    subflows = httpx.post(f"{page[1]}/api/flow_runs/filter", json=below, auth=cli.login, timeout=FACT_SECONDS).json()
    assert [(r["name"], r["state"]["name"]) for r in subflows] == [("slow:one", "Cancelled")]
    deadline = time.monotonic() + FACT_SECONDS
    while (status := cli.ps())["users"]:
        assert time.monotonic() < deadline
    assert processes_outside_the_runtime(cli.home, status["pid"]) == []
    assert not work_goes_on(cli.home / "results" / result["tasks"][0]["task_id"])


def processes_outside_the_runtime(home: Path, runtime: int) -> list[list[str]]:
    """Return the command lines of processes of this home that the runtime does not own."""
    owned = {runtime, *(child.pid for child in psutil.Process(runtime).children(recursive=True))}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid not in owned and process.environ().get("MLOC_HOME") == str(home):
                found.append(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def work_goes_on(task: Path) -> bool:
    def size() -> int:
        return sum(f.stat().st_size for f in task.glob("attempts/*/items.jsonl"))

    before = size()
    assert before > 0
    time.sleep(1.0)  # longer than the delay of a row
    return size() != before


def test_resume_takes_over_what_is_done_on_a_server_of_the_users_own(cli: Cli, tmp_path: Path):
    spec = tmp_path / "two.yaml"
    spec.write_text(SLOW.replace("row_delay: 0.6", "row_delay: 0"))
    failed = cli("run", str(spec), "--json", "--set", "stages.two.spec.echo.fail=on purpose", MLOC_MAX_RETRIES="0")
    assert failed.returncode == 5
    first = last_object(failed.stdout)
    assert [t["status"] for t in first["tasks"]] == ["DONE", "FAILED"]
    assert "on purpose" in first["tasks"][1]["error"]
    assert "error: stage 'two': RuntimeError: on purpose" in failed.stderr
    page = PAGE.search(failed.stderr)
    assert page is not None

    resumed = cli("run", str(spec), "--resume", first["flow_run_id"], PREFECT_API_URL=f"{page[1]}/api")
    assert resumed.returncode == 0, resumed.stderr
    assert "one: DONE" in resumed.stdout
    assert "reused" in resumed.stdout
    assert first["tasks"][0]["result_path"] in resumed.stdout
    assert first["tasks"][1]["task_id"] in resumed.stdout
    assert resumed.stdout.count("started echo") == 1


def test_five_mistakes_are_five_diagnostics_and_nothing_is_started(cli: Cli, tmp_path: Path):
    spec = tmp_path / "five.yaml"
    spec.write_text(
        "apiVersion: mloc/v1\nkind: InferenceTask\nmetadata: {name: five}\nspec:\n  taskType: inference\n"
        "  resources: {replicas: 1, hardware: {cpu: 1}}\n  data: {type: lists}\n"
        "  inference: {temperature: hot, top_p: 2, max_tokens: many}\n"
    )
    home = tmp_path / "never"
    done = cli("run", str(spec), "--json", MLOC_HOME=str(home))
    heads = [line for line in done.stderr.splitlines() if line.startswith(f"{spec}:")]
    assert done.returncode == 2
    assert len(heads) == 5
    assert all(re.match(r".*:\d+:\d+: error\[[a-z-]+\]: ", head) for head in heads)
    assert last_object(done.stdout) == {"ok": False, "flow_run_id": None, "tasks": []}
    assert not home.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("templates/echo.yaml", "--results-dir", "BLOCKED/results"), 6, "BLOCKED"),
        (("templates/echo.yaml", "--results-dir", "/proc/results"), 6, "/proc/results is not writable"),
        (("templates/agent.yaml", "--ignore-resources"), 3, "nor the operator names a language model"),
        (("templates/echo.yaml", "--set", "spec.resources.hardware.memory=900TiB"), 3, "this machine has"),
        (("templates/echo.yaml", "--resume", "yesterday"), 2, "--resume 'yesterday' is not the id of a flow run"),
    ],
)
def test_what_cannot_run_is_one_clear_line_and_nothing_is_started(cli: Cli, tmp_path: Path, arguments, code, words):
    (tmp_path / "blocked").write_text("a file, so that it cannot become a directory")
    blocked = str(tmp_path / "blocked")
    home = tmp_path / "never"
    done = cli("run", *(a.replace("BLOCKED", blocked) for a in arguments), MLOC_HOME=str(home))
    assert done.returncode == code, done.stderr
    assert clear(done.stderr)
    assert words.replace("BLOCKED", blocked) in done.stderr
    assert not (home / "run").exists()


def test_a_server_that_does_not_answer_is_named(cli: Cli):
    done = cli("run", "templates/echo.yaml", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.returncode == 4, done.stderr
    assert clear(done.stderr)
    assert "http://127.0.0.1:9/api" in done.stderr


def test_mistakes_that_show_in_the_executor_are_one_clear_line_each(cli: Cli, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"question": "Why?"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    spec = tmp_path / "mistakes.yaml"
    spec.write_text(MISTAKES.replace("DIR", str(tmp_path)))
    done = cli("run", str(spec), "--json")
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr
    tasks = {t["node"]: t for t in last_object(done.stdout)["tasks"]}
    words = {
        "model": ["no/such-model", "mirrors", "local path", "hub"],
        "column": ["Column 'answer' not found in dataset", "question"],
        "empty": ["No prompts prepared"],
    }
    for node, expected in words.items():
        lines = [line for line in done.stderr.splitlines() if line.startswith(f"error: stage '{node}': ")]
        assert len(lines) == 1, done.stderr
        assert all(word in lines[0] for word in expected)
        assert tasks[node]["status"] == "FAILED"
        assert tasks[node]["error"].splitlines()[0] in lines[0]
        assert done.stderr.count(f"{node}: started") == 1  # what the user has to mend is not tried again


def clear(stderr: str) -> bool:
    """One `error:` line, at most one `help:` line under it, no traceback."""
    lines = stderr.strip().splitlines()
    return lines[0].startswith("error: ") and all(line.startswith("  help: ") for line in lines[1:]) and len(lines) <= 2
