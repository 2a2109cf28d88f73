"""The engine that a vLLM host holds: who uses it, when it is replaced, and when it sleeps."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import MissingExtraError
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.vllm_engine import EngineDeadError, EngineLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.executors.adapters import Adapter
    from mloc_prefect.executors.vllm_args import EngineWish

_LOOK_SECONDS = 0.25


class HeldEngine:
    """The engine of this process and who uses it."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._loop: EngineLoop | None = None
        self._engine: Any = None
        self._wish: EngineWish | None = None
        self._users = 0
        self._line: list[object] = []
        self._loading = False
        self._asleep = False
        self._loads = 0
        self._adapters: dict[str, int] = {}

    @property
    def loaded(self) -> bool:
        """Whether an engine is there, awake or not."""
        return self._engine is not None

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
        except (EngineDeadError, MissingExtraError):  # the loop has given it up
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

    def sleep(self) -> bool:
        """Put the engine to sleep if it can and nobody uses it; return whether it sleeps. [vLLM, sleep level 1]."""
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
            self._settle()
        return True

    def close(self) -> None:
        """Unload and end the thread."""
        if self._loop is not None:
            self._loop.unload().result()
            self._loop.end()

    def _enter(self, wanted: EngineWish, context: ExecutionContext) -> None:
        """Become a user of an engine as `wanted`. Tasks enter in the order in which they came.

        Without an order, a task that needs another engine would wait for as long as others keep this one busy.
        """
        ticket = object()
        with self._free:
            self._line.append(ticket)
            try:
                ready = self._wait(ticket, wanted, context)
                self._users += 1
            finally:
                self._line.remove(ticket)
                self._free.notify_all()
        if not ready:
            self._make_ready(wanted, context)

    def _wait(self, ticket: object, wanted: EngineWish, context: ExecutionContext) -> bool:
        """Wait for the turn of `ticket`; return whether the engine suits, else it is the caller's to replace."""
        told = False
        while True:
            if self._line[0] is ticket and not self._loading:
                if self._suits(wanted) and not self._asleep:
                    return True
                if self._users == 0:
                    self._loading = True
                    return False
            if not told:
                context.phase("waiting for the engine")
                told = True
            self._free.wait(_LOOK_SECONDS)
            context.check()

    def _suits(self, wanted: EngineWish) -> bool:
        return self._engine is not None and self._wish is not None and wanted.served_by(self._wish)

    def _make_ready(self, wanted: EngineWish, context: ExecutionContext) -> None:
        """Wake or replace the engine; nobody uses it, and `_loading` keeps others away."""
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
            self._settle()

    def _settle(self) -> None:
        with self._free:
            self._loading = False
            self._free.notify_all()

    def _wake(self, context: ExecutionContext) -> None:
        assert self._loop is not None
        context.phase("waking the model")
        engine = self._engine
        try:
            self._loop.call(engine.wake_up).result()
        except Exception as error:  # boundary: an engine that does not wake up is as good as dead
            self._engine = None
            raise EngineDeadError(error) from error
        self._asleep = False

    def _load(self, wanted: EngineWish, context: ExecutionContext) -> None:
        held = self._wish
        if held is not None and wanted.arguments == held.arguments and wanted.fingerprint == held.fingerprint:
            wanted = replace(wanted, lora_rank=max(wanted.lora_rank, held.lora_rank))
        self._loop = self._loop or EngineLoop()
        if self._engine is not None:
            context.phase("unloading the previous engine")
            self._engine, self._asleep = None, False
            _patiently(self._loop.unload(), context)
        self._engine = _patiently(self._loop.load(wanted.engine_arguments(), context.phase), context)
        self._wish, self._loads = wanted, self._loads + 1
        self._adapters.clear()


def _patiently(future: Future[Any], context: ExecutionContext) -> Any:
    """Return the result of something that cannot be cut off; a cancelled task leaves when it is done."""
    result = future.result()
    context.check()
    return result
