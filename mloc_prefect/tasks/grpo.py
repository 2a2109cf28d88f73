"""`grpo`: reinforcement learning from several answers to each prompt, without a value model. Not in MLOC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from mloc_prefect.tasks.base import SpecProblem, TaskType
from mloc_prefect.tasks.fields import Count, Positive, block, number
from mloc_prefect.tasks.ppo import RolloutSpec, RolloutTraining
from mloc_prefect.tasks.training.training_checks import training_problems
from mloc_prefect.tasks.training.training_spec import names_in_trl, train_executor, train_model

if TYPE_CHECKING:
    from collections.abc import Iterator


_OWN_SIZES = frozenset({"generation_batch_size", "steps_per_generation"})
"""If one of these is set, TRL computes the batch size differently."""


class GrpoTraining(RolloutTraining):
    """`training` of grpo; `num_generations` answers are compared for each prompt."""

    accepted: ClassVar[frozenset[str]] = names_in_trl("grpo")

    learning_rate: Positive = 1e-6
    batch_size: Count = 8
    num_generations: Count = 8
    beta: Annotated[float | None, number(ge=0)] = None
    loss_type: Any = None


class GrpoSpec(RolloutSpec):
    """`spec` of a grpo task."""

    training: Annotated[GrpoTraining, block()] = GrpoTraining()

    def problems(self) -> Iterator[SpecProblem]:
        """Yield batches without whole groups of answers, in addition to the problems of `RolloutSpec`."""
        yield from super().problems()
        training = self.training
        yield from training_problems("grpo", training, self.generation, lora=self.lora is not None)
        if training.num_generations < 2:
            message = "num_generations must be at least 2: answers are compared with each other"
            yield SpecProblem(("training", "num_generations"), "trainer-refuses", message)
        elif training.sizes() is not None and not _OWN_SIZES & set(training.model_extra or {}):
            yield from _group_problems(training, self._processes())

    def _processes(self) -> int:
        """Return how many processes train, by the rule of `executors/training/ranks/launch.py`."""
        gpu, training = self.resources.hardware.gpu, self.training
        leased = 1 if gpu is None or training.allow_multi_gpu is False else gpu.count or 1
        return training.nproc_per_node or leased


def _group_problems(training: GrpoTraining, processes: int) -> Iterator[SpecProblem]:
    """Report a batch of all processes that does not consist of whole groups of answers."""
    batch = training.per_device_train_batch_size or training.batch_size
    answers = batch * training.gradient_accumulation_steps * processes
    if answers % training.num_generations:
        factors = "batch_size x gradient_accumulation_steps" + (f" x {processes} processes" if processes > 1 else "")
        message = f"{factors} = {answers} is not a multiple of num_generations {training.num_generations}"
        yield SpecProblem(("training", "num_generations"), "uneven-batches", message, "choose sizes that divide")


GRPO = TaskType(
    "grpo",
    GrpoSpec,
    train_executor("requests"),
    "reinforcement learning from several answers to each prompt",
    model_identifier=train_model("grpo"),
    required_references=("checkpoint.load",),
    category="training",
)
