"""`inference`: generates text for prompts [protocol 4.2]."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from mloc_prefect.tasks.base import ExecutorRef, SpecModel, SpecProblem, TaskType
from mloc_prefect.tasks.chat_messages import template_choice, template_fault
from mloc_prefect.tasks.common import CommonSpec
from mloc_prefect.tasks.fields import (
    Count,
    Flag,
    FlagOrText,
    Free,
    NotNegative,
    Text,
    Texts,
    block,
    is_deferred,
    number,
    whole,
)
from mloc_prefect.tasks.prompts import Postprocess, PromptData
from mloc_prefect.tasks.response_schema import schema_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mloc_prefect.tasks.base import TaskSpec

_CHAT_OPTIONS = ("chat_template_kwargs", "add_generation_prompt", "continue_final_message")
_OWN_ARGUMENTS = frozenset(
    {"messages", "conversation", "tools", "chat_template", "tokenize", *_CHAT_OPTIONS[1:]}
    | {"return_dict", "return_tensors", "padding", "truncation", "max_length"}
)


class InferenceOptions(SpecModel):
    """`inference`: sampling and related options."""

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
    # Not in MLOC, whose behaviour is the default: chats, with the options of vLLM, and how many rows may fail.
    chat_template: FlagOrText = False
    chat_template_kwargs: Free = Field(default_factory=dict)
    add_generation_prompt: Flag | None = None
    continue_final_message: Flag = False
    max_failed_rows: NotNegative = 0
    batch_size: Count | None = None
    # Not in MLOC, vLLM only: answers per prompt, log probabilities, structured output, generating past the end token.
    n: Count = 1
    logprobs: NotNegative | None = None
    response_schema: Any = None
    ignore_eos: Flag = False
    max_batch_tokens: Count | None = None


class InferenceSpec(CommonSpec):
    """`spec` of an inference task."""

    loads_model: ClassVar[bool] = True

    data: Annotated[PromptData | None, block()] = None
    inference: Annotated[InferenceOptions, block()] = InferenceOptions()
    postprocess: Annotated[Postprocess, block()] = Postprocess()

    def problems(self) -> Iterator[SpecProblem]:
        """Yield what MLOC's worker would refuse, before anything starts."""
        yield from super().problems()
        if self.data is None or not self.data.model_fields_set:
            yield SpecProblem(
                ("data",),
                "missing-data",
                "spec.data is required.",
                "add data: with type list, dataset or graph_template",
            )
        else:
            yield from self.data.problems()
        if self.postprocess.jsonl_export is not None:
            yield from self.postprocess.jsonl_export.problems(("postprocess", "jsonl_export"))
        yield from self._engine_problems()
        yield from self._answer_problems()
        yield from self._chat_problems()
        yield from self.model.transformers.problems(("model", "transformers"))

    def _engine_problems(self) -> Iterator[SpecProblem]:
        """Yield fields that only vLLM reads when the spec itself rules out vLLM."""
        for path in self.vllm_only() if self.enforce_cpu else ():
            message = f"{'.'.join(path)} is read by vLLM only, and the transformers engine refuses the task"
            yield SpecProblem(path, "engine-refuses", message, "remove enforce_cpu, or this field", "warning")

    def _answer_problems(self) -> Iterator[SpecProblem]:
        """Yield what every engine would refuse, or could not do, once it is loaded.

        Of a JSON Schema, only violations of its draft are reported; errors in annotations pass, as engines ignore them.
        """
        options = self.inference
        if options.n > 1 and (options.temperature == 0 or options.do_sample is False):
            message = f"inference.n: {options.n} asks for different answers, but without sampling all are the same"
            yield SpecProblem(("inference", "n"), "engine-refuses", message, "set temperature above 0, or remove n")
        if options.stop is not None and "" in ([options.stop] if isinstance(options.stop, str) else options.stop):
            message = "stop holds an empty text, which ends no answer"
            yield SpecProblem(("inference", "stop"), "ignored-value", message, "remove it", "warning")
        if found := schema_fault(options.response_schema):
            hint = "see https://json-schema.org/understanding-json-schema, or use {regex: ...} or {choices: [...]}"
            position, fault = ("inference", "response_schema", *found[0]), f"response_schema: {found[1]}"
            yield SpecProblem(position, "bad-schema", fault, hint)

    def _chat_problems(self) -> Iterator[SpecProblem]:
        """Yield options of chats that no template takes, and those that no row of a list reads."""
        options = self.inference
        if options.continue_final_message and options.add_generation_prompt:
            message = "continue_final_message and add_generation_prompt exclude each other"
            hint = "an answer either continues the last message or begins anew; remove one of them"
            yield SpecProblem(("inference", "add_generation_prompt"), "engine-refuses", message, hint)
        for name in sorted(_OWN_ARGUMENTS & options.chat_template_kwargs.keys()):
            message = f"chat_template_kwargs cannot set {name}, which comes from the data or has a field of its own"
            path = ("inference", "chat_template_kwargs", name)
            yield SpecProblem(path, "engine-refuses", message, "remove it")
        chat, template = template_choice(options.chat_template)
        if template is not None and (found := template_fault(template)):
            hint = "a template is Jinja text or the path of its file; true takes that of the model"
            yield SpecProblem(("inference", "chat_template"), "bad-template", f"chat_template: {found}", hint)
        asked = self.data.items if self.data is not None and self.data.type == "list" else None
        texts = asked and all(isinstance(item, str) and not is_deferred(item) for item in asked)
        for name in _CHAT_OPTIONS if texts and not chat else ():
            if name in options.model_fields_set:
                message = f"{name} has no effect: no row is a chat"
                hint = "add chat_template: true, or write rows as messages"
                yield SpecProblem(("inference", name), "ignored-value", message, hint, "warning")

    def vllm_only(self) -> list[tuple[str, ...]]:
        """Return the fields that are set and that only vLLM reads."""
        wanted = (
            (("inference", "response_schema"), self.inference.response_schema is not None),
            (("inference", "logprobs"), self.inference.logprobs is not None),
            (("inference", "n"), self.inference.n > 1),
        )
        return [path for path, is_set in wanted if is_set]

    def wants_vllm(self) -> bool:
        """Return whether the spec names vLLM, or needs what only vLLM does, or does better (adapters)."""
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


def _inference_executor(spec: TaskSpec) -> ExecutorRef:
    """Return transformers, which is available everywhere, preceded by vLLM where the spec allows it [protocol 4.2]."""
    transformers = _transformers_ref(spec)
    if isinstance(spec, CommonSpec) and spec.enforce_cpu:
        return replace(transformers, why="spec.enforce_cpu asks for it")
    named = isinstance(spec, InferenceSpec) and (spec.wants_vllm() or spec.task_type == "vllm")
    return replace(transformers, preferred=(_VLLM, replace(_VLLM_CPU, asked=named)))


def _transformers_executor(spec: TaskSpec) -> ExecutorRef:
    return replace(_transformers_ref(spec), why="the task type is that of the transformers executor")


def _transformers_ref(spec: TaskSpec) -> ExecutorRef:
    only = spec.vllm_only() if isinstance(spec, InferenceSpec) else []
    return replace(_TRANSFORMERS, refuses=tuple(f"spec.{'.'.join(path)}" for path in only))


def _model(spec: TaskSpec) -> str | None:
    return spec.model.source.identifier if isinstance(spec, CommonSpec) else None


def engine_options(spec: TaskSpec) -> dict[str, Any]:
    """Return what determines how the model is loaded; sampling does not, so it may differ on a warm host."""
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


def _task(name: str, summary: str, executor: Callable[[TaskSpec], ExecutorRef] = _transformers_executor) -> TaskType:
    counts = name.lower().startswith("inference")  # MLOC goes by this in some places, by the exact name in others
    return TaskType(
        name,
        InferenceSpec,
        executor,
        summary,
        engine_options,
        _model,
        category="inference" if counts else "other",
        reads_enforce_cpu=counts,
    )


INFERENCE = replace(
    _task("inference", "text for prompts from a list, a data set or earlier stages", _inference_executor),
    shardable=True,
)
VARIANTS = (
    _task("inference-cpu", "inference with Hugging Face transformers (the spelling of some MLOC specs)"),
    _task("inference-gpu", "inference with Hugging Face transformers (the spelling of some MLOC specs)"),
    _task("default", "inference with Hugging Face transformers"),
    _task("vllm", "inference; MLOC's own name for its vLLM executor", _inference_executor),
)


def fallback(name: str) -> TaskType:
    """Return the task type for an unknown `name`: MLOC runs it with its transformers executor."""
    return _task(name, "unknown to MLOC, which runs it as inference with transformers")
