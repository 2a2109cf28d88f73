"""The recorded specs of MLOC for inference and training through `mloc up`, pointed at small models by `--set` only.

Those for agents are in `test_agent_runs.py`, that for retrieval is in `test_rag_cli.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.support.mloc_specs import SPECS
from tests.support.tiny_model import save_tiny_model
from tests.support.up import Up, running_up

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not SPECS.is_dir(), reason="the recorded specs of MLOC are not beside this checkout")

PORT = 27350
TOKEN = "dev-token"  # of the recorded specs
ROWS = [
    {"question": f"What is {n} + 1?", "answer": f"{n + 1}", "prompt": f"def f{n}():", "canonical_solution": "return 1"}
    for n in range(200)
]
ON_CPU = {"training.fp16": False, "training.bf16": False, "training.fsdp": None, "training.fsdp_config": None}
SHORT = {"training.steps": 2, "training.save_freq": 2, "generation.max_new_tokens": 4}
CHANGES: dict[str, dict[str, Any]] = {
    "dag_inference_example": {"inference.max_tokens": 16},
    "inference_tf_llama": {},
    "inference_vllm_http_callback": {"output.destination.headers.Authorization": f"Bearer {TOKEN}"},
    "inference_vllm_mistral": {"model.vllm": None},  # its trust_remote_code wants the operator's consent
    "multi_step_cot": {"stages.refine-gpu.spec.model.vllm": None},
    "sft_llama_1b": {},
    "sft_llama_3b": {**ON_CPU, "training.allow_multi_gpu": False, "training.visible_devices": None},
    "sft_llama_two_stage": {},
    "lora_sft_llama": ON_CPU,
    "lora_sft_llama_two_stage": {},
    "dpo_training_llama_1b": {},
    "dpo_training_mistral": {},
    "ppo_training_llama_1b": SHORT,
    "ppo_training_mistral": SHORT,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what takes the place of hub names: a model, a classifier, a file of rows."""
    root = tmp_path_factory.mktemp("recorded")
    model = save_tiny_model(root / "tiny", window=4096)
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    classifier = save_classifier(root / "sentiment")
    return {"model": str(model), "rows": str(root / "rows.jsonl"), "classifier": str(classifier)}


def save_classifier(folder: Path) -> Path:
    """Save a classifier of sentiment with the labels of the recorded one."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(save_tiny_model(folder.with_name("of-classifier")))
    labels = {0: "negative", 1: "neutral", 2: "positive"}
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=0,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, places: dict[str, str]) -> Iterator[Up]:
    variables = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MLOC_DATA_ROOTS": str(Path(places["model"]).parent)}
    with running_up(tmp_path_factory.mktemp("up") / "home", PORT, ORCHESTRATOR_TOKEN=TOKEN, **variables) as up:
        yield up


def changes_of(document: dict[str, Any], places: dict[str, str], url: str) -> dict[str, Any]:
    """Return what every spec needs on a machine without GPUs and without the hub, by path."""
    wanted = {
        "resources.hardware.cpu": "1",
        "resources.hardware.memory": "1Gi",
        "resources.hardware.gpu": None,
        "model.source.identifier": places["model"],
        "reward_model.identifier": places["classifier"],
        "data.url": places["rows"],
        "data.name": None,
        "data.dataset_name": places["rows"],
        "data.config_name": None,
        "output.destination.url": f"{url}/api/v1/results",
        "output.destination.path": "./",
    }
    spec, found = document["spec"], dict[str, Any]()
    stages = [(f"stages.{stage['name']}.spec.", stage["spec"]) for stage in spec.get("stages", ())]
    for above, part in (("", spec), *stages):
        found |= {above + path: value for path, value in wanted.items() if has(part, path)}
        if part.get("data", {}).get("split") == "test":
            found[f"{above}data.split"] = "train"
    return found


def has(spec: Any, path: str) -> bool:
    """Return whether a spec has a value at a dotted path."""
    for name in path.split("."):
        if not isinstance(spec, dict) or name not in spec:
            return False
        spec = spec[name]
    return True


@pytest.mark.parametrize("name", CHANGES)
def test_a_recorded_spec_runs(name: str, up: Up, places: dict[str, str]) -> None:
    file = SPECS / f"{name}.yaml"
    changes = changes_of(yaml.safe_load(file.read_text()), places, up.url) | CHANGES[name]
    sets = [word for path, value in changes.items() for word in ("--set", f"spec.{path}={json.dumps(value)}")]
    variables = {"MLOC_URL": up.url, "MLOC_TOKEN": TOKEN}
    done = up.run("submit", str(file), "--watch", "--json", *sets, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    for task in json.loads(done.stdout.splitlines()[-1])["tasks"]:  # all are DONE, by the exit code
        shown = up.run("results", task["task_id"], **variables)
        assert shown.returncode == 0, shown.stderr
        document = json.loads(shown.stdout)
        result = document.get("result", document)  # in an envelope if it was posted
        assert result.get("items") or result["training_successful"], result


def test_every_recorded_spec_is_run_by_a_test() -> None:
    elsewhere = {"rag_query_qdrant"} | {file.stem for file in SPECS.glob("agent_*.yaml")}
    assert {file.stem for file in SPECS.glob("*.yaml")} == {*CHANGES, *elsewhere}
