"""`ppo`: reinforcement learning with a reward model [protocol 4.5]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from mloc_prefect.tasks.base import SpecModel, SpecProblem, TaskType
from mloc_prefect.tasks.fields import Count, Flag, Positive, Text, Texts, block, is_deferred, number, whole
from mloc_prefect.tasks.lora_sft import LoraOptions
from mloc_prefect.tasks.training.mini_batches import (
    SIZES,
    UnevenBatchesError,
    batches_of,
    replaced_mini_batch,
    replaced_text,
)
from mloc_prefect.tasks.training.rewards import RewardModelBlock, Rewards, reward_problems
from mloc_prefect.tasks.training.training_checks import training_problems
from mloc_prefect.tasks.training.training_spec import (
    Prompts,
    TrainingData,
    TrainingOptions,
    TrainSpec,
    names_in_trl,
    train_executor,
    train_model,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


class PromptsData(TrainingData):
    """`data` of ppo and grpo; other columns of a data set serve the rewards, e.g. `answer`."""

    prompts: Prompts = None
    text_field: Text | None = None
    prompt_column: Text | None = None

    def problems(self) -> Iterator[SpecProblem]:
        """Yield problems of the data, and a warning when there is none."""
        yield from self.jsonl_problems()
        if not self.has_source() and not self.prompts and "prompts" not in self.model_fields_set:
            message = "No prompts are given, so four built-in demo prompts are used"
            fix = "add data.prompts, data.jsonl.path or data.dataset_name"
            yield SpecProblem(("data",), "demo-data", message, fix, "warning")


class GenerationOptions(SpecModel):
    """`generation`: sampling during training."""

    max_new_tokens: Count | None = None
    min_new_tokens: Annotated[int | None, whole(ge=0)] = None
    temperature: Annotated[float | None, number(ge=0)] = None
    top_p: Annotated[float | None, number(ge=0, le=1)] = None
    top_k: Annotated[int | None, whole(ge=-1)] = None
    min_p: Annotated[float | None, number(ge=0, le=1)] = None
    do_sample: Flag | None = None
    repetition_penalty: Annotated[float | None, number(gt=0)] = None
    stop: Texts | None = None


class RolloutTraining(TrainingOptions):
    """Fields of `training` that ppo and grpo share."""

    mini_batch_size: Count | None = None
    num_mini_batches: Count | None = None
    max_prompt_length: Count | None = None
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

    def sizes(self) -> dict[str, int] | None:
        """Return the batch sizes that are set; None when one of them comes from an earlier stage."""
        if SIZES & self.later():
            return None
        return {name: getattr(self, name) for name in (SIZES & self.model_fields_set) - self._absent}


class PpoTraining(RolloutTraining):
    """`training` of ppo."""

    accepted: ClassVar[frozenset[str]] = names_in_trl("ppo")

    learning_rate: Positive = 1.41e-5
    batch_size: Count = 4


class RolloutSpec(TrainSpec):
    """`spec` of tasks that train on answers of the model itself."""

    data: Annotated[PromptsData, block()] = PromptsData()
    reward_model: RewardModelBlock = None
    rewards: Rewards = None
    generation: Annotated[GenerationOptions, block()] = GenerationOptions()
    lora: Annotated[LoraOptions | None, block()] = None

    def problems(self) -> Iterator[SpecProblem]:
        """Yield problems of data, rewards, sampling and adapters."""
        yield from super().problems()
        yield from self.data.problems()
        given = self.model_fields_set & {"reward_model", "rewards"}
        yield from reward_problems(self.reward_model, self.rewards, later=bool(given))
        temperature = self.generation.temperature
        if temperature == 0 and not is_deferred(temperature):
            message = "temperature 0 gives the same answer each time, so there is nothing to compare"
            yield SpecProblem(("generation", "temperature"), "trainer-refuses", message, "use e.g. 0.7")
        if self.lora is not None:
            yield from self.lora.problems()


class PpoSpec(RolloutSpec):
    """`spec` of a ppo task."""

    training: Annotated[PpoTraining, block()] = PpoTraining()

    def problems(self) -> Iterator[SpecProblem]:
        """Yield batch sizes that do not divide, in addition to the problems of `RolloutSpec`."""
        yield from super().problems()
        yield from training_problems("ppo", self.training, self.generation)
        yield from _batch_problems(self.training)


def _batch_problems(training: PpoTraining) -> Iterator[SpecProblem]:
    """Report sizes that do not divide: each optimizer step takes whole mini-batches of one batch of answers."""
    sizes = training.sizes() or {}
    if replaced := replaced_mini_batch(sizes):
        path = ("training", "mini_batch_size")
        yield SpecProblem(path, "uneven-batches", replaced_text(replaced), "choose sizes that divide", "warning")
    try:
        batches_of(sizes)
    except UnevenBatchesError as error:
        yield SpecProblem(("training", error.field), "uneven-batches", str(error), "choose sizes that divide")


PPO = TaskType(
    "ppo",
    PpoSpec,
    train_executor("trl.experimental.ppo", environment="ppo"),
    "reinforcement learning with a reward model",
    model_identifier=train_model("ppo"),
    required_references=("checkpoint.load",),
    category="training",
)
