"""The engine that a vLLM host holds: lends it to tasks, replaces it, and puts it to sleep."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import MissingExtraError
from mloc_prefect.execution.failures import one_line
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.vllm.engine_loop import EngineDeadError, EngineLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.executors.common.adapters import LoraAdapter
    from mloc_prefect.executors.vllm.engine_arguments import EngineRequest

_POLL_SECONDS = 0.25


class HeldEngine:
    """The engine of this process, and the tasks that use it."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._loop: EngineLoop | None = None
        self._engine: Any = None
        self._request: EngineRequest | None = None
        self._users = 0
        self._queue: list[object] = []
        self._loading = False
        self._asleep = False
        self._loads = 0
        self._adapters: dict[str, int] = {}

    @property
    def loaded(self) -> bool:
        """Whether an engine is loaded, awake or asleep."""
        return self._engine is not None

    @contextmanager
    def lend(
        self, request: Callable[[], EngineRequest], context: ExecutionContext
    ) -> Iterator[tuple[EngineLoop, Any, int]]:
        """Yield the engine that the task needs, loaded if necessary, and the number of engines loaded so far."""
        if "vllm" not in sys.modules:
            context.phase("importing vllm")
        wanted = request()
        self._enter(wanted, context)
        try:
            assert self._loop is not None
            yield self._loop, self._engine, self._loads
        except (EngineDeadError, MissingExtraError):  # the loop has dropped the engine
            self._engine = None
            raise
        finally:
            with self._free:
                self._users -= 1
                self._free.notify_all()

    def lora(self, adapter: LoraAdapter | None) -> Any:
        """Return the `LoRARequest` of `adapter` after the engine has accepted it, or None without adapter.

        Raises:
            UserError: vLLM does not support the adapter.
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
            # Loaded here, because an adapter that fails while rows run would end the engine.
            self._loop.call(lambda: engine.add_lora(request)).result()
        except (ValueError, TypeError, KeyError, OSError, RuntimeError, NotImplementedError) as error:
            text = one_line(error)
            raise UserError(f"the adapter {adapter.name!r} ({adapter.path}) does not fit the model: {text}") from error
        return request

    def sleep(self) -> bool:
        """Put the engine to sleep if it supports that and no task uses it; return whether it sleeps."""
        with self._free:
            if self._users or self._loading or self._engine is None:
                return False
            if self._asleep or not self._engine.vllm_config.model_config.enable_sleep_mode:
                return self._asleep
            self._loading = True
        assert self._loop is not None
        engine = self._engine
        try:
            self._loop.call(lambda: engine.sleep(level=1)).result()  # level 1 keeps the weights in RAM
            self._asleep = True
        finally:
            self._finish_loading()
        return True

    def close(self) -> None:
        """Unload the engine and end the thread."""
        if self._loop is not None:
            self._loop.unload().result()
            self._loop.end()

    def _enter(self, wanted: EngineRequest, context: ExecutionContext) -> None:
        """Become a user of an engine that serves `wanted`. Tasks are admitted in order of arrival.

        Without that order, a task that needs another engine would wait for as long as others use this one.
        """
        ticket = object()
        with self._free:
            self._queue.append(ticket)
            try:
                ready = self._wait_turn(ticket, wanted, context)
                self._users += 1
            finally:
                self._queue.remove(ticket)
                self._free.notify_all()
        if not ready:
            self._make_ready(wanted, context)

    def _wait_turn(self, ticket: object, wanted: EngineRequest, context: ExecutionContext) -> bool:
        """Wait for the turn of `ticket`; return whether the engine is suitable, else the caller must replace it."""
        reported = False
        while True:
            if self._queue[0] is ticket and not self._loading:
                if self._suits(wanted) and not self._asleep:
                    return True
                if self._users == 0:
                    self._loading = True
                    return False
            if not reported:
                context.phase("waiting for the engine")
                reported = True
            self._free.wait(_POLL_SECONDS)
            context.check()

    def _suits(self, wanted: EngineRequest) -> bool:
        return self._engine is not None and self._request is not None and wanted.served_by(self._request)

    def _make_ready(self, wanted: EngineRequest, context: ExecutionContext) -> None:
        """Wake or replace the engine; no task uses it, and `_loading` keeps others out."""
        try:
            if self._asleep and self._suits(wanted):
                self._wake(context)
            else:
                self._load(wanted, context)
        except BaseException:
            with self._free:
                self._users -= 1
            raise
        finally:
            self._finish_loading()

    def _finish_loading(self) -> None:
        with self._free:
            self._loading = False
            self._free.notify_all()

    def _wake(self, context: ExecutionContext) -> None:
        assert self._loop is not None
        context.phase("waking the model")
        engine = self._engine
        try:
            self._loop.call(engine.wake_up).result()
        except Exception as error:  # boundary: an engine that does not wake up counts as dead
            self._engine = None
            raise EngineDeadError(error) from error
        self._asleep = False

    def _load(self, wanted: EngineRequest, context: ExecutionContext) -> None:
        held = self._request
        if held is not None and wanted.arguments == held.arguments and wanted.fingerprint == held.fingerprint:
            wanted = replace(wanted, lora_rank=max(wanted.lora_rank, held.lora_rank))
        self._loop = self._loop or EngineLoop()
        if self._engine is not None:
            context.phase("unloading the previous engine")
            self._engine, self._asleep = None, False
            _wait_for(self._loop.unload(), context)
        self._engine = _wait_for(self._loop.load(wanted.engine_arguments(), context.phase), context)
        self._request, self._loads = wanted, self._loads + 1
        self._adapters.clear()


def _wait_for(future: Future[Any], context: ExecutionContext) -> Any:
    """Return the result of a step that cannot be interrupted; a cancelled task ends after it."""
    result = future.result()
    context.check()
    return result
