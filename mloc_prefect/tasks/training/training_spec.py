"""Models of the fields that all training task types share [protocol 4.3-4.5]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, ModelWrapValidatorHandler, PrivateAttr, model_validator

from mloc_prefect.tasks.base import ExecutorRef, SpecModel, SpecProblem
from mloc_prefect.tasks.common import CommonSpec
from mloc_prefect.tasks.fields import (
    Count,
    ExactText,
    Flag,
    Free,
    NotNegative,
    Positive,
    Text,
    Textual,
    block,
    is_deferred,
    item,
    number,
    rows,
    whole,
)
from mloc_prefect.tasks.training.option_limits import HIGHEST_SEED
from mloc_prefect.tasks.training.training_table import DEFAULT_MODELS, REPLACED_FIELDS, config_fields, passed_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mloc_prefect.tasks.base import TaskSpec
    from mloc_prefect.tasks.training.training_table import Kind

_PROMPTS = "spec.data.prompts must be a non-empty list of strings"
Prompts = Annotated[list[Annotated[str, Textual(exact=True, message=_PROMPTS, item=True)]] | None, rows(_PROMPTS)]
"""`data.prompts`: MLOC refuses anything but text, with a single message."""

Rows = Annotated[list[Annotated[dict[str, Any], item()]] | None, rows("must be a list of mappings")]
"""`data.rows`: rows in the spec itself, or the `items` of an earlier stage."""


def names_in_trl(kind: Kind) -> frozenset[str]:
    """Return the names under `training` that are accepted because TRL's config class has them."""
    return frozenset(passed_on(kind)) | (frozenset(REPLACED_FIELDS) & frozenset(config_fields(kind)))


class TrainingOptions(SpecModel):
    """Fields of `training` that more than one task type has; `training_table` says what becomes of them.

    Fields that are null or come from an earlier stage read as their default. They are recorded, so that no problem is
    reported because of a default that the spec did not choose.
    """

    num_train_epochs: Annotated[float, number(gt=0)] = 1.0
    batch_size: Count = 2
    per_device_train_batch_size: Count | None = None
    gradient_accumulation_steps: Count = 1
    learning_rate: Positive = 5e-5
    max_steps: Annotated[int | None, whole(ge=-1)] = None
    steps: Count | None = None
    warmup_steps: NotNegative = 0
    warmup_ratio: Annotated[float | None, number(ge=0, le=1)] = None
    weight_decay: Annotated[float | None, number(ge=0)] = None
    max_grad_norm: Annotated[float | None, number(ge=0)] = None
    lr_scheduler_type: Text | None = None
    optim: Text | None = None
    logging_steps: Count = 10
    save_steps: Count = 100
    save_strategy: Text = "steps"
    save_freq: Count | None = None
    save_total_limit: Count | None = None
    save_model: Flag = True
    save_archive: Flag = True
    fit_check: Text = "warn"
    max_seq_length: Count | None = 1024
    seed: Annotated[int, whole(ge=0, le=HIGHEST_SEED)] = 42
    fp16: Flag = False
    bf16: Flag = False
    gradient_checkpointing: Flag = False
    resume_from_path: Text | None = None
    visible_devices: Text | None = None
    allow_multi_gpu: Flag | None = None
    primary_gpu: NotNegative = 0
    nproc_per_node: Count | None = None
    deepspeed: Any = None
    auto_deepspeed: Flag = False
    auto_deepspeed_stage: Annotated[int | None, whole(ge=0, le=3)] = None
    zero_stage: Annotated[int | None, whole(ge=0, le=3)] = None
    log_with: Text | None = None
    tracker_project_name: Text | None = None
    fsdp: Any = None
    fsdp_config: Free = Field(default_factory=dict)
    _absent: frozenset[str] = PrivateAttr(frozenset())
    _later: frozenset[str] = PrivateAttr(frozenset())

    @model_validator(mode="wrap")
    @classmethod
    def _record_open_fields(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        found = handler(data)
        if isinstance(data, dict):
            found._absent = frozenset(name for name, value in data.items() if value is None)
            found._later = frozenset(name for name, value in data.items() if is_deferred(value))
        return found

    def later(self) -> frozenset[str]:
        """Return the names of the fields that come from an earlier stage."""
        return self._later


class SftTraining(TrainingOptions):
    """`training` of sft."""

    accepted: ClassVar[frozenset[str]] = names_in_trl("sft")

    gradient_checkpointing: Flag = True
    packing: Flag = False


class Jsonl(SpecModel):
    """`data.jsonl`: training rows from a file."""

    path: Text | None = None
    text_field: Text | None = None
    prompt_field: Text | None = None
    response_field: Text | None = None
    query_field: Text | None = None
    chosen_field: Text | None = None
    rejected_field: Text | None = None
    separator: Text | None = None


class TrainingData(SpecModel):
    """Fields of `data` that all training task types know; none reads `type`."""

    type: Any = None
    dataset_name: Text | None = None
    config_name: Text | None = None
    split: ExactText = "train"
    max_samples: Count | None = None
    revision: Text | None = None
    trust_remote_code: Flag = False
    jsonl: Annotated[Jsonl | None, block()] = None
    jsonl_path: Text | None = None
    rows: Rows = None
    notes: Any = None

    def has_source(self) -> bool:
        """Return whether a data set, a file or rows are named; rows of an earlier stage count."""
        return bool(self.dataset_name or self.jsonl_path or self.jsonl or "rows" in self.model_fields_set)

    def jsonl_problems(self) -> Iterator[SpecProblem]:
        """Report a `data.jsonl` without a path."""
        if self.jsonl is not None and not self.jsonl.path and not self.jsonl_path:
            yield SpecProblem(
                ("data", "jsonl", "path"), "missing-value", "data.jsonl.path is required", "name the file"
            )


class SftData(TrainingData):
    """`data` of sft and lora_sft."""

    prompt_column: Text | None = None
    response_column: Text | None = None
    separator: Text = "\n\n"
    text_field: Text = "text"
    prompts: Prompts = None

    def problems(self, task: str) -> Iterator[SpecProblem]:
        """Yield problems of the data; `task` is the name of the task type in MLOC's texts."""
        yield from self.jsonl_problems()
        if not self.has_source() and self.prompts is None:
            message = f"spec.data must define dataset_name or prompts for {task} tasks"
            yield SpecProblem(("data",), "missing-data", message, "add dataset_name, jsonl.path, rows or prompts")
        elif not self.has_source() and not self.prompts:
            yield SpecProblem(("data", "prompts"), "no-prompts", _PROMPTS, "add at least one prompt")
        if bool(self.prompt_column) != bool(self.response_column):
            given, lacks = (
                ("prompt_column", "response_column") if self.prompt_column else ("response_column", "prompt_column")
            )
            message = f"{given} is used only together with {lacks}; text_field '{self.text_field}' is read instead"
            yield SpecProblem(("data", given), "ignored-value", message, f"add {lacks}", "warning")


class TrainSpec(CommonSpec):
    """`spec` of a training task; the module of each task type adds its own fields."""

    loads_model: ClassVar[bool] = True

    def problems(self) -> Iterator[SpecProblem]:
        """Yield the problems that every training can have."""
        yield from super().problems()
        yield from self.model.transformers.problems(("model", "transformers"))


def train_executor(*more: str, environment: str = "train") -> Callable[[TaskSpec], ExecutorRef]:
    """Return the function that names the training executor.

    All trainers of one environment share an executor, so that their tasks share a warm host, whose libraries take ten
    seconds to load. The module `mloc_prefect.executors.training.<task type>` holds what one type adds.

    Args:
        more: Further imports it needs in addition to TRL.
        environment: `train`, or `ppo` for what only the TRL there has; also the name of the extra.
    """
    imports = ("torch", "transformers", "datasets", "trl", "peft", *more)
    path = "mloc_prefect.executors.training:TrainingExecutor"
    ref = ExecutorRef(path, extra=environment, environment=environment, imports=imports)
    return lambda _spec: ref


def train_model(kind: Kind) -> Callable[[TaskSpec], str | None]:
    """Return the function that names the model of a training task, or MLOC's default."""
    return lambda spec: (isinstance(spec, CommonSpec) and spec.model.source.identifier) or DEFAULT_MODELS[kind]
