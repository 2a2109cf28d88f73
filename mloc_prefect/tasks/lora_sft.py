"""`lora_sft`: supervised fine-tuning of low-rank adapters [protocol 4.4]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from mloc_prefect.diagnostics.diagnostic import did_you_mean
from mloc_prefect.tasks.base import SpecModel, SpecProblem, TaskType
from mloc_prefect.tasks.fields import Count, Flag, Positive, Text, Textual, block, is_deferred, number, rows
from mloc_prefect.tasks.training.training_checks import training_problems
from mloc_prefect.tasks.training.training_spec import (
    SftData,
    TrainingOptions,
    TrainSpec,
    names_in_trl,
    train_executor,
    train_model,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_TASK_TYPES = ("CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
_BIAS = ("none", "all", "lora_only")


class LoraOptions(SpecModel):
    """`lora`."""

    r: Count = 16
    alpha: Positive = 32
    dropout: Annotated[float, number(ge=0, lt=1)] = 0.05
    bias: Text = "none"
    target_modules: Annotated[
        list[Annotated[str, Textual(exact=True, item=True)]], rows("lora.target_modules must be a list of module names")
    ] = Field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    task_type: Text = "CAUSAL_LM"
    use_rslora: Flag = False

    def problems(self) -> Iterator[SpecProblem]:
        """Yield values that PEFT does not know."""
        kind = self.task_type.strip().upper()
        if kind not in _TASK_TYPES and not is_deferred(self.task_type):
            near = did_you_mean(kind, _TASK_TYPES) or "use CAUSAL_LM"
            message = f"Unsupported LoRA task_type '{self.task_type}'"
            yield SpecProblem(("lora", "task_type"), "unsupported-lora", message, near)
        if self.bias not in _BIAS and not is_deferred(self.bias):
            near = did_you_mean(self.bias, _BIAS) or f"use one of: {', '.join(_BIAS)}"
            yield SpecProblem(("lora", "bias"), "unsupported-lora", f"Unsupported LoRA bias '{self.bias}'", near)


class LoraTraining(TrainingOptions):
    """`training` of lora_sft."""

    accepted: ClassVar[frozenset[str]] = names_in_trl("lora_sft")

    learning_rate: Positive = 2e-4
    packing: Flag = False


class LoraSftSpec(TrainSpec):
    """`spec` of a lora_sft task."""

    data: Annotated[SftData, block()] = SftData()
    training: Annotated[LoraTraining, block()] = LoraTraining()
    lora: Annotated[LoraOptions, block()] = LoraOptions()

    def problems(self) -> Iterator[SpecProblem]:
        """Yield what MLOC's worker would refuse."""
        yield from super().problems()
        yield from self.data.problems("LoRA SFT")
        yield from training_problems("lora_sft", self.training, lora=True)
        yield from self.lora.problems()


LORA_SFT = TaskType(
    "lora_sft",
    LoraSftSpec,
    train_executor(),
    "supervised fine-tuning of LoRA adapters",
    model_identifier=train_model("lora_sft"),
    required_references=("checkpoint.load",),
    category="training",
)
