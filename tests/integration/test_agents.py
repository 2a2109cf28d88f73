"""Agents against a scripted OpenAI-compatible endpoint over HTTP: items, limits, restarts and files."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.execution.protocol import Cancelled, UserError
from mloc_prefect.settings import get_settings
from mloc_prefect.trust.agent_configurations import AgentSite
from tests.support.agent_bench import AgentBench
from tests.support.chat_stub import Answer, ChatStub, results_of, task_of
from tests.support.patience import START_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "the numbers are 19 and 23"


class Scripts:
    """What the model answers, by the first word of its task."""

    def __init__(self) -> None:
        self.hold = threading.Event()
        self.holding = threading.Event()
        self.fails = 0

    def __call__(self, body: dict[str, Any]) -> Answer:
        script = getattr(self, task_of(body).split()[0])
        answer: Answer = script(body, results_of(body))
        return answer

    @staticmethod
    def sum(_body: dict[str, Any], results: list[str]) -> Answer:
        """Needs two tools to answer: one reads the numbers, one adds them."""
        if not results:
            return {"read_file": {"path": "numbers.txt"}}
        if len(results) == 1:
            return {"python": {"code": f"import re; print(sum(map(int, re.findall('[0-9]+', {results[0]!r}))))"}}
        return f"the sum is {results[1]}"

    @staticmethod
    def refuse(_body: dict[str, Any], _results: list[str]) -> Answer:
        return 400

    @staticmethod
    def loop(_body: dict[str, Any], results: list[str]) -> Answer:
        return {"read_file": {"path": "numbers.txt", "offset": len(results)}}

    def hang(self, _body: dict[str, Any], results: list[str]) -> Answer:
        if not results:
            return {"read_file": {"path": "numbers.txt"}}
        self.holding.set()
        self.hold.wait(60)
        return "late"

    def busy(self, _body: dict[str, Any], _results: list[str]) -> Answer:
        self.fails += 1
        return 503

    @staticmethod
    def long(_body: dict[str, Any], _results: list[str]) -> Answer:
        return "x" * 5_000

    @staticmethod
    def say(body: dict[str, Any], _results: list[str]) -> Answer:
        return f"said {body['model']}"


@pytest.fixture
def scripts() -> Iterator[Scripts]:
    found = Scripts()
    yield found
    found.hold.set()


@pytest.fixture
def stub(scripts: Scripts) -> Iterator[ChatStub]:
    with ChatStub(scripts) as endpoint:
        yield endpoint


@pytest.fixture
def bench(tmp_path: Path, stub: ChatStub) -> AgentBench:
    found = AgentBench(tmp_path, stub.url)
    found.configure(tools=["list_files", "read_file", "python"])
    (found.task_dir / "numbers.txt").write_text(SECRET)
    return found


def test_eight_of_ten_items_need_two_tools_and_two_fail_alone(bench: AgentBench, stub: ChatStub) -> None:
    items = [f"sum {number}" if number not in (3, 7) else f"refuse {number}" for number in range(10)]
    result = bench(items)
    answers = {item["index"]: item for item in result["items"]}
    assert [n for n in answers if answers[n]["finish_reason"] == "failed"] == [3, 7]
    assert "answers with status 400" in answers[3]["error"]
    assert {answers[n]["output"].strip() for n in answers if n not in (3, 7)} == {"the sum is 42"}
    assert result["ok"] is True
    assert result["model"] == "default"
    assert result["metadata"]["batch_summary"] == {"total_tasks": 10, "completed": 8, "failed": 2}
    assert result["usage"]["num_requests"] == 10
    assert result["usage"]["total_tokens"] == 8 * 3 * 15
    assert result["usage"]["tool_calls"] == 16
    assert len(stub.requests) == 8 * 3 + 2
    summary = json.loads((bench.task_dir / "batch_summary.json").read_text())
    assert summary == result["metadata"]["batch_summary"]
    assert (bench.task_dir / "batch_logs" / "task_1_output.txt").read_text().startswith("the sum is 42")
    assert (bench.task_dir / "batch_logs" / "task_4_output.txt").read_text().startswith("failed: ")
    trace = (bench.task_dir / "batch_logs" / "task_1_trace.md").read_text()
    assert [trace.index(part) for part in ("calls read_file", SECRET, "calls python", "The model answers")] == sorted(
        trace.index(part) for part in ("calls read_file", SECRET, "calls python", "The model answers")
    )
    assert bench.events[-1].data["done"] == 10


def test_another_attempt_asks_for_the_failed_items_only(bench: AgentBench, stub: ChatStub) -> None:
    bench(["sum 1", "refuse 2"])
    before = len(stub.requests)
    again = bench(["sum 1", "refuse 2"])
    assert [task_of(body) for body in stub.requests[before:]] == ["refuse 2"]
    assert again["items"][0]["output"].strip() == "the sum is 42"


def test_a_single_task_has_its_own_files_and_fails_as_a_whole(bench: AgentBench) -> None:
    done = bench.run({"task": "say hello"})
    assert done["items"] == [
        {"index": 0, "output": "said scripted", "finish_reason": "completed", "prompt": "say hello"}
    ]
    assert done["metadata"] == {"task": "say hello", "execution_log": "agent_output.txt"}
    assert (bench.task_dir / "agent_output.txt").read_text() == "said scripted"
    assert (bench.task_dir / "agent_trace.md").exists()
    assert not (bench.task_dir / "batch_summary.json").exists()
    with pytest.raises(UserError, match=r"1 of 1 items failed: item 0: .*status 400"):
        bench.run({"data": {"type": "static", "task": "refuse this"}})


def test_a_model_that_loops_ends_at_its_limit_of_steps(bench: AgentBench, stub: ChatStub) -> None:
    result = bench(["loop", "say it"], max_steps=5)
    assert "after 5 steps, its limit (agent.max_steps)" in result["items"][0]["error"]
    assert result["items"][1]["finish_reason"] == "completed"
    assert len(stub.requests) == 6


def test_other_limits(bench: AgentBench) -> None:
    result = bench(["loop calls", "say it"], max_tool_calls=2)
    assert "more than 2 calls of tools, its limit (agent.max_tool_calls)" in result["items"][0]["error"]
    result = bench(["loop tokens", "say it"], max_tokens=40)
    assert "used 45 tokens, and its limit is 40 (agent.max_tokens)" in result["items"][0]["error"]
    bench.configure(tools=["read_file"], limits={"output_bytes": 1000, "steps": 3})
    result = bench(["long answer", "loop more"], max_failed_items=2, max_steps=9)
    assert "its answer has 5000 bytes, and its limit is 1000" in result["items"][0]["error"]
    assert "after 3 steps" in result["items"][1]["error"]  # a spec cannot raise a limit, and is told so
    assert any("9 is more than the configuration allows; it stays at 3" in line for line in bench.logged())


def test_an_item_ends_at_its_limit_of_time_and_the_others_are_kept(bench: AgentBench) -> None:
    result = bench(["hang", "say it"], timeout=5, concurrency=2)
    assert "longer than its limit of 5 s (agent.timeout)" in result["items"][0]["error"]
    assert result["items"][1]["output"] == "said scripted"


def test_a_cancelled_task_ends_and_keeps_what_is_finished(bench: AgentBench, scripts: Scripts, stub: ChatStub) -> None:
    def cancel() -> None:
        scripts.holding.wait(60)
        bench.cancelled.set()

    threading.Thread(target=cancel, daemon=True).start()
    with pytest.raises(Cancelled):
        bench(["say first", "hang"], concurrency=1)
    bench.cancelled.clear()
    scripts.hold.set()
    before = len(stub.requests)
    result = bench(["say first", "hang"], concurrency=1)
    assert [item["output"] for item in result["items"]] == ["said scripted", "late"]
    assert [len(results_of(body)) for body in stub.requests[before:]] == [1]


def test_after_a_kill_finished_steps_are_not_done_again(bench: AgentBench, scripts: Scripts, stub: ChatStub) -> None:
    """The second item is killed between its second request and the answer to it."""
    items = {"data": {"type": "list", "items": ["sum 1", "hang"]}}
    request = bench.request(items, concurrency=1)
    code = (
        "import json, sys, threading\n"
        "from mloc_prefect.execution.context import ExecutionContext\n"
        "from mloc_prefect.execution.protocol import ExecutionRequest\n"
        "from mloc_prefect.executors.agent import AgentExecutor\n"
        "request = ExecutionRequest(**json.loads(sys.argv[1]))\n"
        "AgentExecutor({}).run(request, ExecutionContext(request, lambda _event: None, threading.Event()))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, json.dumps(asdict(request))])
    assert scripts.holding.wait(START_SECONDS)
    process.kill()
    process.wait()
    scripts.hold.set()
    before = len(stub.requests)
    assert before == 3 + 2
    result = bench.run(items, concurrency=1)
    assert [item["output"].strip() for item in result["items"]] == ["the sum is 42", "late"]
    again = stub.requests[before:]
    assert [(task_of(body), len(results_of(body))) for body in again] == [("hang", 1)]  # neither the file nor the item
    assert result["_summary"]["reused_rows"] == 1
    trace = (bench.task_dir / "batch_logs" / "task_2_trace.md").read_text()
    assert "2 steps were done by an earlier attempt" in trace


def test_what_may_pass_is_retried_while_there_are_attempts(
    bench: AgentBench, scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mloc_prefect.executors.agent.agent_models._RETRIES", 0)
    bench.settings["max_retries"] = 1
    with pytest.raises(RuntimeError, match=r"1 of 2 items failed: item 1: .*status 503"):
        bench(["say it", "busy"])
    result = bench(["say it", "busy"])  # the last attempt: what failed is in the result
    assert [item["finish_reason"] for item in result["items"]] == ["completed", "failed"]
    assert scripts.fails == 2


def test_an_endpoint_that_cannot_be_reached_is_named(bench: AgentBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mloc_prefect.executors.agent.agent_models._RETRIES", 0)
    with socket.socket() as bound:  # and nothing listens on it
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        with pytest.raises(RuntimeError, match=f"the model at {url} cannot be reached"):
            bench(["say it"], base_url=url)
        with pytest.raises(RuntimeError, match=f"the model at {url} cannot be reached") as failed:
            bench(["say it"], base_url=f"{url.replace('//', '//me:secret@')}?key=secret")
        assert "secret" not in str(failed.value)


def test_the_operators_key_goes_to_the_operators_endpoint_only(
    bench: AgentBench, stub: ChatStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UTU_LLM_API_KEY", "operators-key")
    monkeypatch.setenv("UTU_LLM_BASE_URL", stub.url)
    monkeypatch.setenv("UTU_LLM_MODEL", "operators")
    bench(["say one"])
    bench(["say two"], api_key="own-key")
    bench.settings["agents"] = AgentSite.of(get_settings()).to_wire()
    result = bench.run({"task": "say three"}, base_url=None, model=None)
    assert stub.keys == ["Bearer none", "Bearer own-key", "Bearer operators-key"]
    assert result["items"][0]["output"] == "said operators"


def test_headers_of_the_workers_environment_go_nowhere(
    bench: AgentBench, stub: ChatStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Operator: secret-1\nAuthorization: Bearer secret-2")
    names = ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "WEBHOOK_SECRET")
    for name in names:
        monkeypatch.setenv(f"OPENAI_{name}", "secret-3")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    bench(["say one"])
    assert "secret" not in str(stub.headers)
    assert stub.keys == ["Bearer none"]


def test_a_host_that_is_not_allowed_is_refused_before_anything_is_asked(bench: AgentBench) -> None:
    with pytest.raises(UserError, match=r"spec.agent.base_url: host 'models.invalid' .* is not allowed"):
        bench(["say it"], base_url="http://models.invalid/v1")
    bench.settings["loopback"] = False
    with pytest.raises(UserError, match="is not allowed"):
        bench(["say it"])


def test_upstream_results_and_files_are_items(bench: AgentBench) -> None:
    (bench.root / "asked.jsonl").write_text('{"question": "say one"}\n{"question": "say two"}\n')
    data = {"type": "dataset", "url": str(bench.root / "asked.jsonl"), "column": "question"}
    assert [item["prompt"] for item in bench.run({"data": data})["items"]] == ["say one", "say two"]
    template = {
        "name": "own",
        "text": "say {col0_value}",
        "columns": [{"label": "a", "expr": "first.result.items[0].output"}],
    }
    upstream = {"first": {"result": {"items": [{"output": "what came before"}]}}}
    spec = {"data": {"type": "graph_template", "template": template}, "_upstreamResults": upstream}
    assert bench.run(spec)["items"][0]["prompt"] == "say what came before"


def test_items_keep_their_order_whatever_ends_first(bench: AgentBench) -> None:
    result = bench([f"say {n}" for n in range(20)], concurrency=8)
    assert [item["index"] for item in result["items"]] == list(range(20))
