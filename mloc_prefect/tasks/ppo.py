"""`ppo`: reinforcement learning with a reward model [protocol 4.5]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from mloc_prefect.tasks.base import Problem, SpecModel, TaskType
from mloc_prefect.tasks.dpo import DEFAULT_MODEL
from mloc_prefect.tasks.fields import Count, Flag, Positive, Text, Texts, block, number, whole
from mloc_prefect.tasks.training import (
    Prompts,
    TrainingData,
    TrainingOptions,
    TrainSpec,
    train_executor,
    train_model,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


class PpoData(TrainingData):
    """`data` of ppo."""

    prompts: Prompts = None
    text_field: Text | None = None
    prompt_column: Text | None = None


class RewardModel(SpecModel):
    """`reward_model`; the corpus uses types `classification` and `sentiment`."""

    identifier: Text | None = None
    type: Text = "classification"
    revision: Text | None = None
    scale: Annotated[float, number()] = 1.0
    max_length: Count | None = None
    positive_label: Text | None = None
    negative_label: Text | None = None
    trust_remote_code: Flag = False


class Generation(SpecModel):
    """`generation`: sampling during training."""

    max_new_tokens: Count | None = None
    min_new_tokens: Annotated[int | None, whole(ge=0)] = None
    temperature: Annotated[float | None, number(ge=0)] = None
    top_p: Annotated[float | None, number(ge=0, le=1)] = None
    top_k: Annotated[int | None, whole(ge=-1)] = None
    do_sample: Flag | None = None
    repetition_penalty: Annotated[float | None, number(gt=0)] = None
    stop: Texts | None = None


class PpoTraining(TrainingOptions):
    """`training` of ppo."""

    learning_rate: Positive = 1.41e-5
    batch_size: Count = 4
    mini_batch_size: Count = 1
    num_mini_batches: Count | None = None
    steps: Count | None = None
    ppo_epochs: Count | None = None
    num_ppo_epochs: Count | None = None
    kl_coef: Annotated[float | None, number(ge=0)] = None
    init_kl_coef: Annotated[float | None, number(ge=0)] = None
    target_kl: Annotated[float | None, number(gt=0)] = None
    adap_kl_ctrl: Flag | None = None
    gamma: Annotated[float | None, number(ge=0, le=1)] = None
    lam: Annotated[float | None, number(ge=0, le=1)] = None
    cliprange: Annotated[float | None, number(gt=0)] = None
    cliprange_value: Annotated[float | None, number(gt=0)] = None
    vf_coef: Annotated[float | None, number(ge=0)] = None
    early_stopping: Any = None
    optimize_cuda_cache: Flag | None = None


class PpoSpec(TrainSpec):
    """`spec` of a ppo task."""

    data: Annotated[PpoData, block()] = PpoData()
    training: Annotated[PpoTraining, block()] = PpoTraining()
    reward_model: Annotated[RewardModel | None, block()] = None
    generation: Annotated[Generation, block()] = Generation()

    def problems(self) -> Iterator[Problem]:
        """Yield batches that do not divide, and data that is none."""
        yield from super().problems()
        yield from self.data.jsonl_problems()
        training = self.training
        if training.batch_size % training.mini_batch_size:
            message = (
                f"batch_size {training.batch_size} is not a multiple of mini_batch_size {training.mini_batch_size}"
            )
            fix = "choose sizes that divide"
            yield Problem(("training", "mini_batch_size"), "uneven-batches", message, fix, "warning")
        if not self.data.has_source() and not self.data.prompts:
            message = "No prompts are given, so four built-in demo prompts are used"
            fix = "add data.prompts, data.jsonl.path or data.dataset_name"
            yield Problem(("data",), "demo-data", message, fix, "warning")


PPO = TaskType(
    "ppo",
    PpoSpec,
    train_executor("ppo", "PpoExecutor"),
    "reinforcement learning with a reward model",
    model_identifier=train_model(DEFAULT_MODEL),
    required_references=("checkpoint.load",),
)
