"""Trainings through `mloc up`: the two-stage templates with the http destination and a token, and a graph."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.support.patience import FACT_SECONDS
from tests.support.tiny_model import save_tiny_model
from tests.support.up import Up, running_up

if TYPE_CHECKING:
    from collections.abc import Iterator

TEMPLATES = Path(__file__).parents[2] / "templates"
PORT = 27400
TOKEN = {"Authorization": "Bearer secret"}
REWARD = "def letters(*, completions, **_):\n    return [sum(c.isalpha() for c in text) for text in completions]\n"
ANSWERS = """
apiVersion: mloc/v1
kind: Pipeline
metadata: {name: from-answers}
spec:
  taskType: inference
  resources: {replicas: 1, hardware: {cpu: 1, memory: 1GiB}}
  model: {source: {identifier: HuggingFaceTB/SmolLM2-135M}}
  inference: {max_tokens: 4, temperature: 0}
  training: {batch_size: 4, steps: 2, save_archive: false}
  graph:
    nodes:
      - name: good
        spec: {data: {type: list, items: &asked [one, two, three, four]}}
      - name: other
        spec: {data: {type: list, items: *asked}, inference: {temperature: 2.0, seed: 1}}
      - name: imitate
        dependsOn: [good]
        spec:
          taskType: sft
          data: {rows: "${good.result.items}", prompt_column: prompt, response_column: output}
      - name: prefer
        dependsOn: [good, other]
        spec:
          taskType: dpo
          data: {pairs: {chosen: "${good.result.items}", rejected: "${other.result.items}"}}
      - name: reinforce
        dependsOn: [good, imitate]
        spec:
          taskType: ppo
          checkpoint: {load: {path: "${imitate.result.final_model_path}"}}
          data: {rows: "${good.result.items}", prompt_column: prompt}
          rewards: [{path: "lab_rewards:letters"}]
          generation: {max_new_tokens: 4}
      - name: ask
        dependsOn: [reinforce]
        spec:
          model: {source: {identifier: "${reinforce.result.final_model_path}"}}
          data: {type: list, items: [five]}
      - name: compare
        dependsOn: [prefer]
        spec:
          model: {source: {identifier: "${prefer.result.final_model_path}"}}
          data: {type: list, items: [five]}
"""
ADAPTED = """
apiVersion: mloc/v1
kind: Pipeline
metadata: {name: adapted}
spec:
  taskType: inference
  resources: {replicas: 1, hardware: {cpu: 1, memory: 1GiB}}
  model: {source: {identifier: HuggingFaceTB/SmolLM2-135M}}
  stages:
    - name: tune
      spec:
        taskType: lora_sft
        data: {prompts: [one, two, three, four]}
        training: {batch_size: 4, learning_rate: 0.5, num_train_epochs: 8, save_archive: false}
    - name: ask
      spec:
        checkpoint: {load: {path: "${tune.result.final_lora_path}"}}
        data: &asked {type: list, items: [one, two]}
        inference: {max_tokens: 8, temperature: 0}
    - name: before
      spec: {data: *asked, inference: {max_tokens: 8, temperature: 0}}
"""
TIGHT = """
apiVersion: mloc/v1
kind: Task
metadata: {name: tight}
spec:
  taskType: sft
  resources: {replicas: 1, hardware: {cpu: 1, memory: 100KiB}}
  model: {source: {identifier: HuggingFaceTB/SmolLM2-135M}}
  data: {prompts: [one, two, three, four]}
  training: {batch_size: 4, steps: 1, save_archive: false}
"""
MODELS = ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    root = tmp_path_factory.mktemp("up")
    save_tiny_model(root / "tiny", window=512)
    for config in ("main", "socratic"):
        rows = [{"question": f"What is {n} + 1?", "answer": f"{config}: {n + 1}"} for n in range(400)]
        (root / "gsm8k" / config).mkdir(parents=True)
        (root / "gsm8k" / config / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mirrors = {"models": dict.fromkeys(MODELS, "tiny"), "datasets": {"openai/gsm8k": "gsm8k"}}
    (root / "mirrors.yaml").write_text(json.dumps(mirrors))
    (root / "lab_rewards.py").write_text(REWARD)
    with running_up(
        root / "home",
        PORT,
        ORCHESTRATOR_TOKEN="secret",
        MLOC_MIRRORS=str(root / "mirrors.yaml"),
        HF_HUB_OFFLINE="1",
        OMP_NUM_THREADS="1",
        PYTHONPATH=str(root),
        MLOC_ALLOWED_REWARDS="lab_rewards",
    ) as up:
        yield up


def submit(up: Up, name: str) -> list[dict[str, Any]]:
    """Submit a template as it is, but for address and token; wait for its end and return the results."""
    text = (TEMPLATES / name).read_text().replace("127.0.0.1:8000", f"127.0.0.1:{up.port}")
    return finish(up, text.replace("change-me", "secret"))


def finish(up: Up, text: str) -> list[dict[str, Any]]:
    """Submit a spec, wait for its end and return the results."""
    tasks = ended(up, text)
    assert all(task["status"] == "DONE" for task in tasks), tasks
    with httpx.Client(base_url=up.url, headers=TOKEN, timeout=FACT_SECONDS) as client:
        return [client.get(f"/api/v1/results/{task['task_id']}").json() for task in tasks]


def ended(up: Up, text: str, **query: str) -> list[dict[str, Any]]:
    """Submit a spec and return its tasks when one has failed or all are done."""
    with httpx.Client(base_url=up.url, headers=TOKEN, timeout=FACT_SECONDS) as client:
        answer = client.post("/api/v1/tasks", content=text, headers={"Content-Type": "text/yaml"}, params=query)
        assert answer.status_code == 200, answer.text
        ids = [task["task_id"] for task in answer.json()["tasks"]]
        deadline = time.monotonic() + 400
        while True:
            tasks = [client.get(f"/api/v1/tasks/{task_id}").json() for task_id in ids]
            states = [task["status"] for task in tasks]
            if set(states) == {"DONE"} or {"FAILED", "CANCELLED"} & set(states):
                return tasks
            assert time.monotonic() < deadline, states
            time.sleep(0.2)


@pytest.mark.parametrize(
    ("name", "kind"), [("sft_two_stage.yaml", "final_model"), ("lora_two_stage.yaml", "final_lora")]
)
def test_two_stages_hand_over_by_the_endpoint(name: str, kind: str, up: Up) -> None:
    first, second = (answer["result"] for answer in submit(up, name))
    url = first[f"{kind}_archive_url"]
    assert url == f"{up.url}/api/v1/results/{first['task_id']}/files/{kind}.zip"
    answer = httpx.get(url, headers=TOKEN, timeout=FACT_SECONDS)
    assert len(answer.content) == Path(first[f"{kind}_archive_path"]).stat().st_size
    assert httpx.get(url, timeout=FACT_SECONDS).status_code == 401
    assert Path(second[f"{kind}_path"]).is_dir()
    imported = Path(second["output_dir"]) / "imported_checkpoint"
    assert not imported.exists(), "both see the same file system, so nothing is copied"
    assert (second["dataset_size"], second["resumed_from_step"]) == (8, None)
    assert second["metrics"]["train_loss"] < first["metrics"]["train_loss"]


def test_train_then_ask_then_report(up: Up) -> None:
    train, ask, report = (answer.get("result", answer) for answer in submit(up, "train_and_ask.yaml"))
    assert ask["model"] == train["final_model_path"]
    assert len(ask["items"]) == 2
    prompt = report["items"][0]["prompt"]
    assert prompt.startswith(
        f"After {train['steps']} steps the loss was {train['metrics']['train_loss']}. The model said: "
    )
    assert prompt.endswith(ask["items"][0]["output"])


def test_trainings_learn_from_answers_of_earlier_stages(up: Up) -> None:
    """Inference -> sft, dpo and ppo, with a reward that the operator allows; ppo and dpo -> inference."""
    good, other, imitate, prefer, reinforce, ask, compare = finish(up, ANSWERS)
    assert [item["prompt"] for item in good["items"]] == ["one", "two", "three", "four"]
    differ = [a["output"] != b["output"] for a, b in zip(good["items"], other["items"], strict=True)]
    assert (imitate["dataset_size"], prefer["dataset_size"]) == (4, sum(differ))
    assert (reinforce["steps"], reinforce["model_name"]) == (2, MODELS[0])
    assert "objective/scores" in reinforce["metrics"]
    assert ask["model"] == reinforce["final_model_path"]
    assert compare["model"] == prefer["final_model_path"]
    assert [len(ask["items"]), len(compare["items"])] == [1, 1]


def test_the_curve_is_on_the_page_of_the_run(up: Up) -> None:
    """Published by the runs above."""
    user, _, password = (up.home / "secrets" / "prefect-auth").read_text().strip().partition(":")
    with httpx.Client(
        base_url=f"http://127.0.0.1:{up.port + 1}/api", auth=(user, password), timeout=FACT_SECONDS
    ) as api:
        answer = api.post("/artifacts/filter", json={"artifacts": {"key": {"like_": "mloc-training%"}}})
        assert answer.status_code == 200, answer.text
        found = answer.json()
    kinds = [artifact["type"] for artifact in found]
    assert (kinds.count("image"), kinds.count("markdown")) == (8, 8), "one of each for each training"
    for artifact in found:
        assert artifact["data"].startswith("data:image/png;base64," if artifact["type"] == "image" else "# ")
        assert artifact["type"] == "image" or "| steps | " in artifact["data"]


def test_an_adapter_is_asked_where_vllm_is_not(up: Up) -> None:
    tune, ask, before = finish(up, ADAPTED)
    assert (Path(tune["final_lora_path"]) / "adapter_config.json").is_file()
    assert (ask["engine"]["name"], ask["model"]) == ("transformers", MODELS[0])
    assert [item["output"] for item in ask["items"]] != [item["output"] for item in before["items"]]


def test_what_will_hardly_fit_is_an_error_when_warnings_are(up: Up) -> None:
    (strict,) = ended(up, TIGHT, strict="true")
    assert strict["status"] == "FAILED"
    assert strict["error"].startswith("the training needs about 0.0 GiB, and there are 0.0 GiB: ")
    (lenient,) = ended(up, TIGHT)
    assert lenient["status"] == "DONE"
    log = httpx.get(f"{up.url}/api/v1/tasks/{lenient['task_id']}/logs", headers=TOKEN, timeout=FACT_SECONDS).text
    assert "the training needs about" in log
