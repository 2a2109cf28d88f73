"""`dpo`: direct preference optimisation [protocol 4.5]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from mloc_prefect.tasks.base import Problem, SpecModel, TaskType
from mloc_prefect.tasks.fields import Count, Positive, Text, block, item, number, rows, whole
from mloc_prefect.tasks.training import TrainingData, TrainingOptions, TrainSpec, train_executor, train_model

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_MODEL = "microsoft/DialoGPT-small"
_ROW = ("prompt", "chosen", "rejected")


class Preference(SpecModel):
    """One of `data.preferences`."""

    prompt: Text | None = None
    chosen: Text | None = None
    rejected: Text | None = None


class DpoData(TrainingData):
    """`data` of dpo; without any source MLOC trains on four pairs of its own."""

    preferences: Annotated[
        list[Annotated[Preference, item("must be a mapping with prompt, chosen and rejected")]] | None,
        rows("must be a list of mappings with prompt, chosen and rejected"),
    ] = None
    prompt_column: Text | None = None
    chosen_column: Text | None = None
    rejected_column: Text | None = None


class DpoTraining(TrainingOptions):
    """`training` of dpo."""

    learning_rate: Positive = 5e-7
    batch_size: Count = 4
    num_train_epochs: Annotated[float, number(gt=0)] = 1
    save_freq: Count | None = 500
    beta: Annotated[float | None, number(gt=0)] = None
    max_length: Count | None = None
    max_prompt_length: Count | None = None
    label_smoothing: Annotated[float | None, number(ge=0, lt=0.5)] = None
    loss_type: Text | None = None
    steps: Annotated[int | None, whole(ge=1)] = None


class DpoSpec(TrainSpec):
    """`spec` of a dpo task."""

    data: Annotated[DpoData, block()] = DpoData()
    training: Annotated[DpoTraining, block()] = DpoTraining()

    def problems(self) -> Iterator[Problem]:
        """Yield rows without all three texts, and data that is none."""
        yield from super().problems()
        yield from self.data.jsonl_problems()
        for index, row in enumerate(self.data.preferences or []):
            for name in _ROW:
                if getattr(row, name) is None:
                    message = f"Preference {index + 1} has no '{name}'"
                    fix = "each one needs prompt, chosen and rejected"
                    yield Problem(("data", "preferences", index, name), "missing-value", message, fix)
        if not self.data.has_source() and not self.data.preferences:
            message = "No preference data is given, so four built-in demo pairs are used"
            fix = "add data.dataset_name, data.jsonl.path or data.preferences"
            yield Problem(("data",), "demo-data", message, fix, "warning")


DPO = TaskType(
    "dpo",
    DpoSpec,
    train_executor("dpo", "DpoExecutor"),
    "direct preference optimisation",
    model_identifier=train_model(DEFAULT_MODEL),
    required_references=("checkpoint.load",),
)
