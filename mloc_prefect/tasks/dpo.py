"""`dpo`: direct preference optimisation [protocol 4.5]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from mloc_prefect.tasks.base import SpecModel, SpecProblem, TaskType
from mloc_prefect.tasks.fields import Count, Positive, Text, block, item, number, rows
from mloc_prefect.tasks.lora_sft import LoraOptions
from mloc_prefect.tasks.training.training_checks import training_problems
from mloc_prefect.tasks.training.training_spec import (
    TrainingData,
    TrainingOptions,
    TrainSpec,
    names_in_trl,
    train_executor,
    train_model,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_ITEMS = "must be a list with one entry for each pair"
_ROW = ("prompt", "chosen", "rejected")


class Preference(SpecModel):
    """One of `data.preferences`."""

    prompt: Text | None = None
    chosen: Text | None = None
    rejected: Text | None = None


class PreferencePairs(SpecModel):
    """`data.pairs`: the items of two earlier stages that answered the same prompts in the same order."""

    chosen: Annotated[list[Any] | None, rows(_ITEMS)] = None
    rejected: Annotated[list[Any] | None, rows(_ITEMS)] = None


class DpoData(TrainingData):
    """`data` of dpo; without a source MLOC trains on four demo pairs."""

    preferences: Annotated[
        list[Annotated[Preference, item("must be a mapping with prompt, chosen and rejected")]] | None,
        rows("must be a list of mappings with prompt, chosen and rejected"),
    ] = None
    pairs: Annotated[PreferencePairs | None, block()] = None
    prompt_column: Text | None = None
    chosen_column: Text | None = None
    rejected_column: Text | None = None


class DpoTraining(TrainingOptions):
    """`training` of dpo."""

    accepted: ClassVar[frozenset[str]] = names_in_trl("dpo")

    learning_rate: Positive = 5e-7
    batch_size: Count = 4
    num_train_epochs: Annotated[float, number(gt=0)] = 1
    save_freq: Count | None = 500
    beta: Annotated[float | None, number(gt=0)] = None
    max_length: Count | None = None
    max_prompt_length: Count | None = None
    label_smoothing: Annotated[float | None, number(ge=0, lt=0.5)] = None
    loss_type: Any = None


class DpoSpec(TrainSpec):
    """`spec` of a dpo task."""

    data: Annotated[DpoData, block()] = DpoData()
    training: Annotated[DpoTraining, block()] = DpoTraining()
    lora: Annotated[LoraOptions | None, block()] = None

    def problems(self) -> Iterator[SpecProblem]:
        """Yield incomplete preferences, and a warning when there is no data."""
        yield from super().problems()
        yield from self.data.jsonl_problems()
        for index, row in enumerate(self.data.preferences or []):
            for name in _ROW:
                if getattr(row, name) is None:
                    message = f"Preference {index + 1} has no '{name}'"
                    fix = "each preference needs prompt, chosen and rejected"
                    yield SpecProblem(("data", "preferences", index, name), "missing-value", message, fix)
        if not self.data.has_source() and not self.data.preferences and self.data.pairs is None:
            message = "No preference data is given, so four built-in demo pairs are used"
            fix = "add data.dataset_name, data.jsonl.path or data.preferences"
            yield SpecProblem(("data",), "demo-data", message, fix, "warning")
        yield from training_problems("dpo", self.training, lora=self.lora is not None)
        if self.lora is not None:
            yield from self.lora.problems()


DPO = TaskType(
    "dpo",
    DpoSpec,
    train_executor(),
    "direct preference optimisation",
    model_identifier=train_model("dpo"),
    required_references=("checkpoint.load",),
    category="training",
)
