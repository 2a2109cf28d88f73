"""Inference with vLLM: one warm engine, fed continuously by all tasks of the host [protocol 4.2, 5]."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.inference_task import InferenceTask
from mloc_prefect.executors.common.model_options import trusts_remote_code
from mloc_prefect.executors.common.rendering import PromptRenderer
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.sources.source_lookup import SourceLookup
from mloc_prefect.executors.vllm.engine_arguments import engine_request, prepare_environment
from mloc_prefect.executors.vllm.held_engine import HeldEngine
from mloc_prefect.executors.vllm.vllm_rows import VllmRows
from mloc_prefect.executors.vllm.vllm_sampling import VllmSampling

if TYPE_CHECKING:
    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.execution.protocol import ExecutionRequest
    from mloc_prefect.executors.common.adapters import LoraAdapter
    from mloc_prefect.executors.vllm.engine_arguments import EngineRequest


class VllmExecutor:
    """Generates answers to prompts with vLLM.

    The engine stays loaded between tasks, and concurrent tasks share its batches. A task that needs another engine
    (other arguments, or an adapter when the current engine supports none) waits until it is free and replaces it; an
    engine with adapters also serves the base model. Rows that an earlier attempt finished are not computed again.

    Args:
        options: Engine options of the host; unused, because every task brings its own.
    """

    concurrency: ClassVar[int] = 16

    def __init__(self, options: Mapping[str, Any]) -> None:
        del options
        self._held = HeldEngine()

    @property
    def loaded(self) -> bool:
        """Whether an engine is loaded, awake or asleep."""
        return self._held.loaded

    def run(self, request: ExecutionRequest, context: ExecutionContext) -> Mapping[str, Any]:
        """Run one inference task.

        Raises:
            UserError: The spec, the data or the model is at fault, or more rows than `inference.max_failed_rows`
                cannot be processed. All finished rows stay in the journal.
            EngineDeadError: The engine failed; this process cannot run further tasks.
            MissingExtraError: vLLM compiles code, and there is no compiler.
            Cancelled: The task was cancelled.
        """
        prepare_environment()
        began = time.monotonic()
        spec = SpecReader(request.spec)
        inference = spec.child("inference")
        sampling = VllmSampling.of(inference)
        _warn_ignored(inference, context)

        def row_settings(adapter: LoraAdapter | None) -> dict[str, Any]:
            return {**sampling.key(), "adapter": adapter.fingerprint if adapter else None}

        task = InferenceTask.read(spec, request, context, model_variable="VLLM_MODEL", row_settings=row_settings)
        facts: dict[str, Any] = {}
        if not task.is_finished:
            own = replace(sampling, common=replace(sampling.common, first=task.prompts.first))
            facts = self._compute(spec, task, own, context, SourceLookup.of(request.settings))
        facts["adapter"] = task.adapter.name if task.adapter else None
        result = task.result("vllm", facts, context)
        result["usage"]["latency_sec"] = round(time.monotonic() - began, 3)
        return result

    def _compute(
        self,
        spec: SpecReader,
        task: InferenceTask,
        sampling: VllmSampling,
        context: ExecutionContext,
        sources: SourceLookup,
    ) -> dict[str, Any]:
        """Compute the missing rows and return what displays show of the engine."""
        if not self._held.loaded and task.has_chats:
            _check_chats(spec, task)
        with self._held.lend(lambda: _engine_request(spec, task, context, sources), context) as (loop, engine, loads):
            device = str(engine.vllm_config.device_config.device_type)
            reader = PromptRenderer(engine.get_tokenizer(), engine.model_config.max_model_len, task.identifier)
            run = VllmRows(loop, reader, task, sampling, self._held.lora(task.adapter), context)
            run.compute()
        run.check_failures()
        return {"loads": loads, "device": device}

    def sleep(self) -> bool:
        """Move the weights to RAM, so that another model has room on the device; the next task moves them back.

        Returns:
            Whether it was done; not possible on a CPU, or with `enable_sleep_mode: false`.
        """
        return self._held.sleep()

    def close(self) -> None:
        """Free the engine's memory."""
        self._held.close()


def _check_chats(spec: SpecReader, task: InferenceTask) -> None:
    """Return if the chat template takes the chats, before an engine is loaded for them.

    Raises:
        UserError: From `InferenceTask.check_chats`.
    """
    from transformers import AutoTokenizer

    options = spec.child("model").child("vllm")
    if options.get("tokenizer", "tokenizer_mode") is not None:
        return  # only vLLM knows what these give
    trusted = trusts_remote_code(spec, options)
    try:
        arguments = task.location.loading_arguments(trust_remote_code=trusted)
        tokenizer = AutoTokenizer.from_pretrained(task.location.path, **arguments)
    except (OSError, ValueError, KeyError, ImportError):
        return  # vLLM has readers of its own; what none of them reads is told when the engine loads
    task.check_chats(tokenizer)


def _engine_request(
    spec: SpecReader, task: InferenceTask, context: ExecutionContext, sources: SourceLookup
) -> EngineRequest:
    """Return the engine that the task needs; imports vLLM."""
    from dataclasses import fields

    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    context.check()
    if type(current_platform).__name__ == "UnspecifiedPlatform":
        raise UserError(
            "this vLLM build supports no device here; run on a machine with a GPU, or build the CPU environment: "
            "mloc env create vllm-cpu"
        )
    known = {f.name for f in fields(EngineArgs)}
    request = engine_request(
        spec,
        task.location,
        lora_rank=task.adapter.rank if task.adapter else 0,
        on_cpu=current_platform.is_cpu(),
        known=known,
        can_sleep=current_platform.is_sleep_mode_available(),
        named=sources.named,
    )
    asked = spec.child("model").child("vllm").get("tensor_parallel_size")
    size = request.arguments["tensor_parallel_size"]
    if asked and int(asked) > size:
        context.log(f"tensor_parallel_size {asked} exceeds the leased devices; {size} is used", "warning")
    return request


def _warn_ignored(inference: SpecReader, context: ExecutionContext) -> None:
    for name in ("batch_size", "max_batch_tokens"):
        if inference.get(name) is not None:
            text = f"{inference.path}.{name} has no effect: vLLM fills batches itself, up to model.vllm.max_num_seqs"
            context.log(text, "warning")
