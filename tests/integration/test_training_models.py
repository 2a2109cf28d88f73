"""Trained models in use: a real small model learns for some steps, and vLLM runs what trainings leave."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mloc_prefect.execution.host_types import HostSpec
from mloc_prefect.execution.hosts import HostPool
from mloc_prefect.execution.hosts.attempt_client import execute
from mloc_prefect.execution.protocol import ExecutionRequest
from tests.support.hosts import read_json, run_dir_of
from tests.support.smollm import prepared_home
from tests.support.tiny_model import save_tiny_model
from tests.support.training import TrainingBench, answer_loss, loaded, losses, sampled
from tests.support.vllm_env import vllm_python

ROWS = [
    {"q": f"Who minds the {thing}?", "a": " Our cat does, every day."} for thing in ("shop", "door", "garden", "boat")
]
UNSEEN = [("Who minds the kitchen?", " Our cat does, every day.")]
DATA = {"rows": ROWS, "prompt_column": "q", "response_column": "a", "separator": ""}
TRAINING = {"batch_size": 2, "max_steps": 4, "logging_steps": 1, "max_seq_length": 64, "save_strategy": "no",
            "gradient_checkpointing": False, "save_archive": False}  # fmt: skip


@pytest.mark.parametrize("kind", ["sft", "lora_sft"])
def test_a_real_small_model_learns(kind: str, tmp_path: Path) -> None:
    base = prepared_home() / "models" / "smollm2"
    bench = TrainingBench(tmp_path, base)
    rates = {"sft": 1e-4, "lora_sft": 2e-3}
    result = bench(kind, DATA, training={**TRAINING, "learning_rate": rates[kind]})
    curve = losses(result)
    assert curve[-1] < curve[0] / 2
    if kind == "sft":
        model, tokenizer = loaded(result["final_model_path"])
    else:
        from peft import PeftModel

        model, tokenizer = loaded(base)
        model = PeftModel.from_pretrained(model, result["final_lora_path"]).eval()
    before = answer_loss(*loaded(base), UNSEEN)
    assert answer_loss(model, tokenizer, UNSEEN) < before / 2


async def test_vllm_runs_what_trainings_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole model by its folder, the adapter by `checkpoint.load` with the id of its task."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tiny = save_tiny_model(tmp_path / "tiny", window=64, hidden=64, heads=2)  # vLLM wants 32 for each head
    bench = TrainingBench(tmp_path / "results", tiny)
    data = {"rows": [{"text": f"say {n}: yes"} for n in range(16)]}
    training = {**TRAINING, "batch_size": 8, "max_steps": 60, "learning_rate": 1e-2}
    lora = {"r": 8, "alpha": 32, "dropout": 0.0}
    whole = await asyncio.to_thread(bench, "sft", data, task="whole", training=training)
    adapter = await asyncio.to_thread(
        bench, "lora_sft", data, task="adapter", lora=lora, training={**training, "learning_rate": 3e-2}
    )
    prompts = ["say 3:", "say 77:"]
    assert sampled(*loaded(tiny), prompts, 4) != [" yes", " yes"]
    python = await asyncio.to_thread(vllm_python)
    host = HostSpec("mloc_prefect.executors.vllm:VllmExecutor", str(python))
    async with HostPool(run_dir_of(tmp_path), 60, 60) as pool:

        async def ask(task: str, **model: Any) -> list[str]:
            directory = tmp_path / "results" / task
            engine = {"vllm": {"max_model_len": 64, "max_num_seqs": 4, "dtype": "float32"}}
            spec = {
                "model": {"source": {"identifier": model.pop("identifier")}, **engine},
                "data": {"type": "list", "items": prompts},
                "inference": {"temperature": 0, "max_tokens": 4},
                **model,
            }
            request = ExecutionRequest(
                task_id=task,
                name=task,
                task_type="inference",
                executor=host.executor,
                spec=spec,
                task_dir=str(directory),
                attempt_dir=str(directory / "attempts" / "1-1"),
                settings={"home": str(tmp_path / "home"), "base_dir": str(tmp_path)},
            )
            result = await execute(request, host, pool, on_event=lambda _event: None, timeout=None, stall=300.0)
            return [item["output"] for item in read_json(result.path)["items"]]

        assert await ask("ask-whole", identifier=whole["final_model_path"]) == [" yes", " yes"]
        load = {"checkpoint": {"load": {"task_id": "adapter"}}}
        assert await ask("ask-adapter", identifier=str(tiny), **load) == [" yes", " yes"]
    assert Path(adapter["final_lora_path"]).parent.name == "adapter"
