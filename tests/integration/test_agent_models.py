"""Agents with real models: a tiny one that the worker loads, and SmolLM2 behind a vLLM server on the CPU."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from mloc_prefect.execution.context import ExecutionContext
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.agent import LocalAgentExecutor
from tests.support.agent_bench import AgentBench
from tests.support.smollm import prepared_home
from tests.support.tiny_model import save_tiny_model
from tests.support.vllm_env import vllm_python

if TYPE_CHECKING:
    from pathlib import Path


def local(bench: AgentBench, executor: LocalAgentExecutor, model: Path, items: list[str]) -> dict[str, Any]:
    spec = {"model": {"source": {"identifier": str(model)}}, "data": {"type": "list", "items": items}}
    options = {"base_url": None, "model": None, "max_response_tokens": 4, "temperature": 0, "max_steps": 3}
    request = bench.request(spec, **options)
    context = ExecutionContext(request, bench.events.append, threading.Event())
    try:
        result = dict(executor.run(request, context))
        return {**result, "items": list(result["items"])}
    finally:
        context.close()


def test_a_model_of_the_worker_works_on_items_and_stays_warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model = save_tiny_model(tmp_path / "tiny", window=4096)
    bench, executor = AgentBench(tmp_path / "site", ""), LocalAgentExecutor({})
    first = local(bench, executor, model, ["one", "two"])
    assert [item["finish_reason"] for item in first["items"]] == ["completed", "completed"]
    assert first["usage"]["completion_tokens"] > 0
    engine = executor._engine
    assert executor.loaded
    again = local(bench, executor, model, ["one", "three"])
    assert executor._engine is engine
    assert again["_summary"]["reused_rows"] == 1
    assert again["items"][0]["output"] == first["items"][0]["output"]
    executor.close()
    assert not executor.loaded


def test_a_conversation_that_does_not_fit_fails_its_item(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "tiny", window=64)
    with pytest.raises(UserError, match="tokens, but the model reads at most 64"):
        local(AgentBench(tmp_path / "site", ""), LocalAgentExecutor({}), model, ["one"])


@pytest.mark.alone
def test_smollm2_behind_vllm_works_to_an_end(tmp_path: Path) -> None:
    """Quality is not judged: a model this small calls no tools, or odd ones."""
    models = yaml.safe_load((prepared_home() / "mirrors.yaml").read_text())["models"]
    path = str(prepared_home() / models["smollm2"])  # relative ones start at the file
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server", "--model", path, "--port", str(port)]
    command += ["--served-model-name", "smollm2", "--max-model-len", "2048", "--dtype", "float32", "--enforce-eager"]
    command += ["--host", "127.0.0.1", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    log = (tmp_path / "vllm.log").open("wb")
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    server = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
    try:
        _wait_for(server, f"http://127.0.0.1:{port}/health", tmp_path / "vllm.log")
        bench = AgentBench(tmp_path / "site", f"http://127.0.0.1:{port}/v1")
        result = bench(["What is the capital of France?", "Name a colour."], model="smollm2", max_response_tokens=64)
        assert [item["finish_reason"] for item in result["items"]] == ["completed", "completed"]
        assert result["usage"]["completion_tokens"] > 0
    finally:
        server.terminate()
        server.wait(60)
        log.close()


def _wait_for(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            if httpx.get(url, timeout=5).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])
