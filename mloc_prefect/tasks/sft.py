"""`sft`: supervised fine-tuning of all weights [protocol 4.3]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from mloc_prefect.tasks.base import TaskType
from mloc_prefect.tasks.fields import block
from mloc_prefect.tasks.training.training_checks import training_problems
from mloc_prefect.tasks.training.training_spec import SftData, SftTraining, TrainSpec, train_executor, train_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.tasks.base import SpecProblem


class SftSpec(TrainSpec):
    """`spec` of an sft task."""

    data: Annotated[SftData, block()] = SftData()
    training: Annotated[SftTraining, block()] = SftTraining()

    def problems(self) -> Iterator[SpecProblem]:
        """Yield what MLOC's worker would refuse."""
        yield from super().problems()
        yield from self.data.problems("SFT")
        yield from training_problems("sft", self.training)


SFT = TaskType(
    "sft",
    SftSpec,
    train_executor(),
    "supervised fine-tuning of all weights",
    model_identifier=train_model("sft"),
    required_references=("checkpoint.load",),
    category="training",
)
