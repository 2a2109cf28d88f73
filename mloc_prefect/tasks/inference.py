"""`inference`: prompts in, texts out [protocol 4.2]."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from mloc_prefect.spec.diagnostics import did_you_mean
from mloc_prefect.tasks.base import ExecutorRef, Problem, SpecModel, TaskType
from mloc_prefect.tasks.common import CommonSpec
from mloc_prefect.tasks.fields import Count, Flag, NotNegative, Text, Texts, block, is_deferred, number, whole
from mloc_prefect.tasks.json_schema import schema_fault
from mloc_prefect.tasks.prompts import Postprocess, PromptData

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    # Ours, vLLM only: answers a prompt, log probabilities, structured output, and going on after the end token.
    n: Count = 1
    logprobs: NotNegative | None = None
    response_schema: Any = None
    ignore_eos: Flag = False
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
        yield from self._engine_problems()
        yield from self._answer_problems()
        dtype = self.model.transformers.dtype
        if dtype.strip().lower().removeprefix("torch.") not in _DTYPES and not is_deferred(dtype):
            near = did_you_mean(dtype, _DTYPES) or f"use one of: {', '.join(_DTYPES)}"
            yield Problem(("model", "transformers", "dtype"), "unsupported-dtype", f"Unsupported dtype: {dtype}", near)

    def _engine_problems(self) -> Iterator[Problem]:
        """Yield what only vLLM reads, when the spec itself keeps vLLM away."""
        for path in self.vllm_only() if self.enforce_cpu else ():
            message = f"{'.'.join(path)} is read by vLLM only, and the transformers engine refuses the task"
            yield Problem(path, "engine-refuses", message, "remove enforce_cpu, or this field", "warning")

    def _answer_problems(self) -> Iterator[Problem]:
        """Yield what every engine would refuse, or could not follow, after it was loaded.

        Of a JSON Schema that is what breaks the rules of its draft; slips in annotations pass, as engines skip them.
        """
        options = self.inference
        if options.n > 1 and (options.temperature == 0 or options.do_sample is False):
            message = f"inference.n: {options.n} asks for different answers, but without sampling all are the same"
            yield Problem(("inference", "n"), "engine-refuses", message, "set temperature above 0, or remove n")
        if found := schema_fault(options.response_schema):
            hint = "see https://json-schema.org/understanding-json-schema, or use {regex: ...} or {choices: [...]}"
            place, fault = ("inference", "response_schema", *found[0]), f"response_schema: {found[1]}"
            yield Problem(place, "bad-schema", fault, hint)

    def vllm_only(self) -> list[tuple[str, ...]]:
        """Return the fields that are set and that only vLLM reads."""
        wanted = (
            (("inference", "response_schema"), self.inference.response_schema is not None),
            (("inference", "logprobs"), self.inference.logprobs is not None),
            (("inference", "n"), self.inference.n > 1),
        )
        return [path for path, is_set in wanted if is_set]

    def wants_vllm(self) -> bool:
        """Return whether the spec names vLLM, or asks for what vLLM does alone, or better: adapters."""
        weights = self.model.adapters or self.checkpoint.load
        return bool(self.model.vllm.model_fields_set or self.vllm_only() or weights)


_TRANSFORMERS = ExecutorRef(
    "mloc_prefect.executors.transformers:TransformersExecutor",
    extra="transformers",
    environment="transformers",
    imports=("torch", "transformers", "datasets"),
    options=("model", "revision", "trust_remote_code", "enforce_cpu", "transformers", "checkpoint"),
    model_variable="HF_MODEL",
)
_VLLM = ExecutorRef(
    "mloc_prefect.executors.vllm:VllmExecutor",
    environment="vllm",
    imports=("torch", "vllm", "datasets"),
    options=("model", "revision", "trust_remote_code", "vllm", "checkpoint"),
    model_variable="VLLM_MODEL",
    shared=True,
    restarts=1,
)
_VLLM_CPU = replace(_VLLM, environment="vllm-cpu")


def _executor(spec: TaskSpec) -> ExecutorRef:
    """Return transformers, which every place can have, with vLLM before it where the spec lets it. [protocol 4.2]."""
    plain = _plain(spec)
    if isinstance(spec, CommonSpec) and spec.enforce_cpu:
        return replace(plain, why="spec.enforce_cpu asks for it")
    named = isinstance(spec, InferenceSpec) and (spec.wants_vllm() or spec.task_type == "vllm")
    return replace(plain, preferred=(_VLLM, replace(_VLLM_CPU, asked=named)))


def _transformers(spec: TaskSpec) -> ExecutorRef:
    return replace(_plain(spec), why="the task type is that of the transformers executor")


def _plain(spec: TaskSpec) -> ExecutorRef:
    only = spec.vllm_only() if isinstance(spec, InferenceSpec) else []
    return replace(_TRANSFORMERS, refuses=tuple(f"spec.{'.'.join(path)}" for path in only))


def _model(spec: TaskSpec) -> str | None:
    return spec.model.source.identifier if isinstance(spec, CommonSpec) else None


def _engine_options(spec: TaskSpec) -> dict[str, Any]:
    """Return what decides how the model is loaded; sampling is not among it, so it may differ on a warm host."""
    if not isinstance(spec, CommonSpec):
        return {}
    source, load = spec.model.source, spec.checkpoint.load
    return {
        "model": source.identifier,
        "revision": source.revision,
        "trust_remote_code": source.trust_remote_code,
        "enforce_cpu": spec.enforce_cpu,
        "transformers": spec.model.transformers.model_dump(mode="json", exclude_unset=True),
        "vllm": spec.model.vllm.model_dump(mode="json", exclude_unset=True),
        "checkpoint": load.model_dump(mode="json", exclude_unset=True) if load else None,
    }


def _task(name: str, summary: str, executor: Callable[[TaskSpec], ExecutorRef] = _transformers) -> TaskType:
    return TaskType(name, InferenceSpec, executor, summary, _engine_options, _model)


INFERENCE = _task("inference", "texts for prompts from a list, a data set or earlier stages", _executor)
VARIANTS = (
    _task("inference-cpu", "inference with Hugging Face transformers (MLOC spells it so in some specs)"),
    _task("inference-gpu", "inference with Hugging Face transformers (MLOC spells it so in some specs)"),
    _task("default", "inference with Hugging Face transformers"),
    _task("vllm", "inference; MLOC's own name of its vLLM executor", _executor),
)


def fallback(name: str) -> TaskType:
    """Return the task type for an unknown `name`: MLOC runs it with its transformers executor."""
    return _task(name, "unknown to MLOC, which runs it as inference with transformers")
