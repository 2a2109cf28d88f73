"""`inference`: prompts in, texts out [protocol 4.2]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from mloc_prefect.spec.diagnostics import did_you_mean
from mloc_prefect.tasks.base import ExecutorRef, Problem, SpecModel, TaskType
from mloc_prefect.tasks.common import CommonSpec
from mloc_prefect.tasks.fields import Count, Flag, NotNegative, Text, Texts, block, is_deferred, number, whole
from mloc_prefect.tasks.prompts import Postprocess, PromptData

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.tasks.base import TaskSpec

_DTYPES = ("auto", "float16", "fp16", "bfloat16", "bf16", "float32", "fp32")


class InferenceOptions(SpecModel):
    """`inference`: sampling and what stands around it."""

    system_prompt: Text | None = Field(None, alias="systemPrompt")
    temperature: Annotated[float, number(ge=0)] = 0.7
    top_p: Annotated[float, number(ge=0, le=1)] = 0.95
    top_k: Annotated[int | None, whole(ge=-1)] = None
    min_p: Annotated[float | None, number(ge=0, le=1)] = None
    max_tokens: Count = 512
    max_new_tokens: Count | None = None
    stop: Texts | None = None
    seed: Annotated[int | None, whole()] = None
    presence_penalty: Annotated[float, number(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, number(ge=-2, le=2)] = 0.0
    do_sample: Flag | None = None
    repetition_penalty: Annotated[float, number(gt=0)] = 1.0
    # Ours: off by default, as in MLOC; the number of rows that may fail before the stage does.
    chat_template: Flag = False
    max_failed_rows: NotNegative = 0
    batch_size: Count | None = None
    max_batch_tokens: Count | None = None


class InferenceSpec(CommonSpec):
    """`spec` of an inference task."""

    data: Annotated[PromptData | None, block()] = None
    inference: Annotated[InferenceOptions, block()] = InferenceOptions()
    postprocess: Annotated[Postprocess, block()] = Postprocess()

    def problems(self) -> Iterator[Problem]:
        """Yield what MLOC's worker would refuse, before anything is started."""
        yield from super().problems()
        if self.data is None or not self.data.model_fields_set:
            yield Problem(
                ("data",),
                "missing-data",
                "spec.data is required.",
                "add data: with type list, dataset or graph_template",
            )
        else:
            yield from self.data.problems()
        for path, value in (
            (("model", "adapters"), self.model.adapters),
            (("checkpoint", "load"), self.checkpoint.load),
        ):
            if value:
                message = f"{'.'.join(path)} is not read by the transformers engine, which refuses the task"
                fix = "merge the weights and name them in model.source.identifier"
                yield Problem(path, "engine-refuses", message, fix, "warning")
        dtype = self.model.transformers.dtype
        if dtype.strip().lower().removeprefix("torch.") not in _DTYPES and not is_deferred(dtype):
            near = did_you_mean(dtype, _DTYPES) or f"use one of: {', '.join(_DTYPES)}"
            yield Problem(("model", "transformers", "dtype"), "unsupported-dtype", f"Unsupported dtype: {dtype}", near)


def _executor(_spec: TaskSpec) -> ExecutorRef:
    return ExecutorRef(
        "mloc_prefect.executors.transformers:TransformersExecutor",
        extra="transformers",
        environment="transformers",
        imports=("torch", "transformers", "datasets"),
    )


def _model(spec: TaskSpec) -> str | None:
    return spec.model.source.identifier if isinstance(spec, CommonSpec) else None


def _engine_options(spec: TaskSpec) -> dict[str, Any]:
    """Return what decides how the model is loaded; sampling is not among it, so it may differ on a warm host."""
    if not isinstance(spec, CommonSpec):
        return {}
    source = spec.model.source
    return {
        "model": source.identifier,
        "revision": source.revision,
        "trust_remote_code": source.trust_remote_code,
        "enforce_cpu": spec.enforce_cpu,
        "transformers": spec.model.transformers.model_dump(mode="json", exclude_unset=True),
    }


def _task(name: str, summary: str) -> TaskType:
    return TaskType(name, InferenceSpec, _executor, summary, _engine_options, _model, model_variable="HF_MODEL")


INFERENCE = _task("inference", "texts for prompts from a list, a data set or earlier stages")
VARIANTS = (
    _task("inference-cpu", "inference with Hugging Face transformers (MLOC spells it so in some specs)"),
    _task("inference-gpu", "inference with Hugging Face transformers (MLOC spells it so in some specs)"),
    _task("default", "inference with Hugging Face transformers"),
    _task("vllm", "inference; MLOC's own name of its vLLM executor"),
)


def fallback(name: str) -> TaskType:
    """Return the task type for an unknown `name`: MLOC runs it with its transformers executor."""
    return _task(name, "unknown to MLOC, which runs it as inference with transformers")
