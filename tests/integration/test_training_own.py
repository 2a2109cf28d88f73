"""Fields of `training` that are worked out by us and not by TRL, each set to a value that shows in one step."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.sources.source_lookup import SourceLookup
from mloc_prefect.executors.training.trainer_arguments import TrainerOptions
from mloc_prefect.tasks.training.training_table import KINDS, cells
from tests.support.tiny_model import save_tiny_model
from tests.support.training import PAIRS, SUMS, TrainingBench

STEP = {"steps": 1, "batch_size": 8, "save_strategy": "no", "save_model": False}
TEXTS, PROMPTS = {"rows": SUMS[:8], "text_field": "question"}, {"prompts": [f"say {n}:" for n in range(8)]}
DATA = {"sft": TEXTS, "lora_sft": TEXTS, "dpo": {"preferences": PAIRS[:8]}, "ppo": PROMPTS, "grpo": PROMPTS}
ANSWERS = {"rewards": [{"name": "json"}], "generation": {"max_new_tokens": 2}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", window=64)


@pytest.fixture
def bench(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingBench:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # barriers between threads cost more than this model's arithmetic
    return TrainingBench(tmp_path, tiny)


def step(bench: TrainingBench, kind: str, task: str, **training: Any) -> dict[str, Any]:
    """Train one step."""
    own = ANSWERS if kind in {"ppo", "grpo"} else {}
    return bench(kind, DATA[kind], task=task, training={**STEP, **training}, **own)


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_tensorboard_are_there_when_they_are_asked_for(kind: str, bench: TrainingBench) -> None:
    assert cells(kind)["log_with"].way == "us"  # type: ignore[arg-type]
    step(bench, kind, "with", log_with="tensorboard")
    step(bench, kind, "without")
    (events,) = (bench.root / "with" / "tensorboard").iterdir()
    assert events.name.startswith("events.out.tfevents")
    assert b"train/" in events.read_bytes()
    assert not (bench.root / "without" / "tensorboard").exists()


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_prompt_and_answer_have_the_tokens_of_a_row(kind: str, bench: TrainingBench) -> None:
    assert cells(kind)["max_seq_length"].way == "us"  # type: ignore[arg-type]
    for most, told in ((5, True), (40, False)):
        result = step(bench, kind, f"at-most-{most}", max_seq_length=most)
        assert any(f" {most - 2} tokens" in note and "prompts" in note for note in result["notes"]) is told, result[
            "notes"
        ]


def test_ppo_recomputes_activations_when_asked(bench: TrainingBench, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedModel

    asked: list[str] = []
    enable = PreTrainedModel.gradient_checkpointing_enable

    def counted(model: Any, *args: Any, **options: Any) -> None:
        asked.append(type(model).__name__)
        enable(model, *args, **options)
        assert model.is_gradient_checkpointing

    monkeypatch.setattr(PreTrainedModel, "gradient_checkpointing_enable", counted)
    step(bench, "ppo", "without")
    assert asked == []
    step(bench, "ppo", "with", gradient_checkpointing=True)
    assert set(asked) == {"LlamaForCausalLM"}  # once by us, then after each batch of answers by TRL


@pytest.mark.parametrize("kind", ["sft", "lora_sft", "dpo", "grpo"])
def test_a_file_of_deepspeed_lies_beside_the_spec(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"mloc_prefect.executors.training.{kind}")
    home = importlib.import_module(type(module.RECIPE).config.__module__)
    monkeypatch.setattr(home, "configured", lambda _config, arguments: arguments)  # DeepSpeed itself is not here
    places = SourceLookup.of({"home": "/x", "base_dir": str(tmp_path)})
    job: Any = SimpleNamespace(
        options=TrainerOptions.of(kind, SpecReader({})), sources=places, window=64, rows=SimpleNamespace(notes=[])
    )
    with pytest.raises(UserError, match=r"spec\.training\.deepspeed: there is no file "):
        module.RECIPE.config(job, {"deepspeed": "ds.json"})
    (tmp_path / "ds.json").write_text("{}")
    assert module.RECIPE.config(job, {"deepspeed": "ds.json"})["deepspeed"] == str(tmp_path / "ds.json")
