"""What training task types share [protocol 4.3-4.5]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from mloc_prefect.tasks.base import ExecutorRef, Problem, SpecModel
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
    item,
    number,
    rows,
    whole,
)
from mloc_prefect.tasks.training_table import DEFAULT_MODELS, OURS, config_fields, passed_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mloc_prefect.tasks.base import TaskSpec
    from mloc_prefect.tasks.training_table import Kind

_PROMPTS = "spec.data.prompts must be a non-empty list of strings"
Prompts = Annotated[list[Annotated[str, Textual(exact=True, message=_PROMPTS, item=True)]] | None, rows(_PROMPTS)]
"""`data.prompts`: MLOC refuses anything but texts, with one wording."""

Rows = Annotated[list[Annotated[dict[str, Any], item()]] | None, rows("must be a list of mappings")]
"""`data.rows`: rows that stand in the spec, or are the `items` of an earlier stage."""


def names_in_trl(kind: Kind) -> frozenset[str]:
    """Return the names under `training` that are no mistake because TRL's config class has them."""
    return frozenset(passed_on(kind)) | (frozenset(OURS) & frozenset(config_fields(kind)))


class TrainingOptions(SpecModel):
    """Fields of `training` that more than one task type has; what becomes of them stands in `training_table`."""

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
    seed: Annotated[int, whole()] = 42
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
    """Fields of `data` that all training task types know; `type` is read by none."""

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
        """Whether a data set, a file or rows are named; rows of an earlier stage count."""
        return bool(self.dataset_name or self.jsonl_path or self.jsonl or "rows" in self.model_fields_set)

    def jsonl_problems(self) -> Iterator[Problem]:
        """Yield an error for a `data.jsonl` without a path."""
        if self.jsonl is not None and not self.jsonl.path and not self.jsonl_path:
            yield Problem(("data", "jsonl", "path"), "missing-value", "data.jsonl.path is required", "name the file")


class SftData(TrainingData):
    """`data` of sft and lora_sft."""

    prompt_column: Text | None = None
    response_column: Text | None = None
    separator: Text = "\n\n"
    text_field: Text = "text"
    prompts: Prompts = None

    def problems(self, task: str) -> Iterator[Problem]:
        """Yield what is wrong with the data; `task` is how MLOC's text names the task type."""
        yield from self.jsonl_problems()
        if not self.has_source() and self.prompts is None:
            message = f"spec.data must define dataset_name or prompts for {task} tasks"
            yield Problem(("data",), "missing-data", message, "add dataset_name, jsonl.path, rows or prompts")
        elif not self.has_source() and not self.prompts:
            yield Problem(("data", "prompts"), "no-prompts", _PROMPTS, "add at least one prompt")
        if bool(self.prompt_column) != bool(self.response_column):
            given, lacks = (
                ("prompt_column", "response_column") if self.prompt_column else ("response_column", "prompt_column")
            )
            message = f"{given} is used only together with {lacks}; text_field '{self.text_field}' is read instead"
            yield Problem(("data", given), "ignored-value", message, f"add {lacks}", "warning")


class TrainSpec(CommonSpec):
    """`spec` of a training task; what one type adds stands in its own module."""


def train_executor(*more: str) -> Callable[[TaskSpec], ExecutorRef]:
    """Return the chooser of the training executor; `more` must be importable beside TRL.

    All trainers share it, so that their tasks share a warm host, whose libraries take ten seconds to load. What one
    type does stands in `mloc_prefect.executors.<task type>`.
    """
    imports = ("torch", "transformers", "datasets", "trl", "peft", *more)
    path = "mloc_prefect.executors.training:TrainingExecutor"
    ref = ExecutorRef(path, extra="train", environment="train", imports=imports)
    return lambda _spec: ref


def train_model(kind: Kind) -> Callable[[TaskSpec], str | None]:
    """Return the reader of the model that a training task names, or MLOC takes without one."""
    return lambda spec: (isinstance(spec, CommonSpec) and spec.model.source.identifier) or DEFAULT_MODELS[kind]
