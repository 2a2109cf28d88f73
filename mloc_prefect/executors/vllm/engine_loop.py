"""The thread that owns the vLLM engine: only it loads, feeds and steps the engine; tasks exchange rows and answers."""

from __future__ import annotations

import gc
import queue
import re
import threading
import time
import traceback
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from mloc_prefect.errors import MissingExtraError
from mloc_prefect.execution.failures import cause_chain, one_line
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.load_errors import damaged, fault_of
from mloc_prefect.executors.common.sampling import NO_NUMBERS
from mloc_prefect.executors.vllm.load_progress import loading_phases
from mloc_prefect.executors.vllm.sampling_parameters import refusals
from mloc_prefect.executors.vllm.score_watch import watch_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_T = TypeVar("_T")
_COUNT_SECONDS = 1.0
_NO_ROOM = re.compile(r"less than (desired [GC]PU memory|the engine's budget|requested memory for kv)")
_NOT_STARTED = re.compile(r"initialization failed")  # the cause is in the log of another process
_NO_COMPILER = re.compile(r"No working C\+\+ compiler|Failed to find C compiler")


class EngineDeadError(RuntimeError):
    """The engine failed while running; only a new process helps."""

    def __init__(self, cause: BaseException) -> None:
        text = one_line(f"{type(cause).__name__}: {cause}", 1000)
        super().__init__(f"EngineDeadError: the vLLM engine stopped: {text}")


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One row for the engine.

    Attributes:
        index: Index of the row in the input.
        tokens: Token ids of the prompt.
        parameters: Its `SamplingParams`.
        lora: Its `LoRARequest`, or None.
    """

    index: int
    tokens: tuple[int, ...]
    parameters: Any
    lora: Any = None


@dataclass(frozen=True, slots=True)
class EngineAnswer:
    """Outcome of one row: the `RequestOutput`, or why the engine refused it."""

    index: int
    output: Any = None
    error: str | None = None


@dataclass(eq=False)
class EngineJob:
    """The rows of one task.

    Attributes:
        waiting: Rows not yet passed to the engine, in order.
        answers: Finished rows, and the error that ended all of them.
        running: Rows in the engine, by request id.
        written: Tokens that these had generated when last counted.
    """

    waiting: deque[EngineRow]
    answers: queue.SimpleQueue[EngineAnswer | BaseException] = field(default_factory=queue.SimpleQueue)
    running: dict[str, EngineRow] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)

    def live(self) -> tuple[int, int]:
        """Return the prompt and generated tokens of the rows in the engine; thread-safe."""
        counted = [(self.running.get(name), count) for name, count in list(self.written.items())]
        read = sum(len(row.tokens) for row, count in counted if row is not None and count)
        return read, sum(count for row, count in counted if row is not None)


class EngineLoop:
    """One engine and its thread.

    Rows of all jobs share the engine. As long as rows wait, it has more of them than it can run at once, so that a row
    that ends is replaced without delay; jobs take turns in passing rows.
    """

    def __init__(self) -> None:
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._jobs: list[EngineJob] = []
        self._engine: Any = None
        self._broken: set[str] = set()
        self._number = 0
        self._counted = 0.0
        self._ended = False
        self._thread = threading.Thread(target=self._run_loop, name="vllm-engine", daemon=True)
        self._thread.start()

    def load(self, arguments: Mapping[str, Any], on_phase: Callable[[str, float | None], None]) -> Future[Any]:
        """Load an engine; the result is the `LLMEngine`.

        Raises:
            UserError: In the future: vLLM refuses the arguments or the model.
            MemoryError: In the future: other processes hold the memory that it needs.
            MissingExtraError: In the future: vLLM compiles code, and there is no compiler.
        """

        def action() -> Any:
            from vllm.engine.arg_utils import EngineArgs
            from vllm.usage.usage_lib import UsageContext
            from vllm.v1.engine.llm_engine import LLMEngine

            if self._engine is not None:  # left by a task that was cancelled while it loaded
                self._release()
            try:
                with loading_phases(on_phase):
                    self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments), UsageContext.LLM_CLASS)
            except Exception as error:
                _drop_frames(error)
                self._release()
                known = _known_error(error, str(arguments["model"]))
                if known is None:
                    raise
                raise known from error
            self._broken = watch_scores(self._engine)
            return self._engine

        return self.call(action)

    def unload(self) -> Future[None]:
        """Free the engine's memory."""

        def action() -> None:
            if self._engine is not None:
                self._release()

        return self.call(action)

    def call(self, action: Callable[[], _T]) -> Future[_T]:
        """Run `action` on the engine's thread, between two steps."""
        done: Future[_T] = Future()

        def command() -> None:
            try:
                done.set_result(action())
            except BaseException as error:  # boundary: raised again where the result is read
                done.set_exception(error)

        self._commands.put(command)
        return done

    def try_parameters(self, row: EngineRow) -> Future[None]:
        """Check that the engine accepts the parameters of `row`, with its first token only; nothing is generated.

        Raises:
            UserError: In the future: it does not. Every row of the task would be refused for the same reason.
        """

        def action() -> None:
            name = "parameters"
            try:
                self._request(name, replace(row, tokens=row.tokens[:1]))
            except refusals() as error:
                raise UserError(f"spec.inference: {one_line(error, 500)}") from None
            self._engine.abort_request([name])

        return self.call(action)

    def submit(self, job: EngineJob) -> None:
        """Add the rows of `job`."""
        self.call(lambda: self._jobs.append(job))

    def cancel(self, job: EngineJob) -> Future[None]:
        """Remove the remaining rows of `job`."""

        def action() -> None:
            job.waiting.clear()
            if job.running and self._engine is not None:
                self._engine.abort_request(list(job.running))
            job.running.clear()
            if job in self._jobs:
                self._jobs.remove(job)

        return self.call(action)

    def end(self) -> None:
        """End the thread."""

        def action() -> None:
            self._ended = True

        self.call(action)

    def _release(self) -> None:
        """Free what the engine holds, or what one that failed to load has left."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        engine, self._engine = self._engine, None
        if engine is not None:
            engine.engine_core.shutdown()
        del engine
        gc.collect()
        cleanup_dist_env_and_memory()

    def _run_loop(self) -> None:
        while not self._ended:
            self._take_commands()
            if self._engine is None or not self._jobs:
                continue
            try:
                self._feed()
                self._step()
            except Exception as error:  # boundary: a failure of the engine is the failure of all its tasks
                self._fail(error)

    def _take_commands(self) -> None:
        """Run the queued commands; wait for one while there are no rows to work on."""
        while True:
            try:
                command = self._commands.get(block=not self._jobs or self._engine is None)
            except queue.Empty:
                return
            command()
            if self._ended:
                return

    def _feed(self) -> None:
        room = 2 * self._engine.vllm_config.scheduler_config.max_num_seqs - sum(len(j.running) for j in self._jobs)
        while room > 0 and any(job.waiting for job in self._jobs):
            for job in list(self._jobs):
                if job.waiting:
                    self._add(job, job.waiting.popleft())
                    room -= 1

    def _add(self, job: EngineJob, row: EngineRow) -> None:
        self._number += 1
        name = f"row-{self._number}"
        try:
            self._request(name, row)
        except refusals() as error:
            job.answers.put(EngineAnswer(row.index, error=one_line(error, 500)))
        else:
            job.running[name] = row
        self._drop_ended(job)

    def _request(self, name: str, row: EngineRow) -> None:
        prompt = {"prompt_token_ids": list(row.tokens)}
        self._engine.add_request(name, prompt, row.parameters, lora_request=row.lora)

    def _step(self) -> None:
        if not self._engine.has_unfinished_requests():
            return
        outputs = self._engine.step()
        if self._broken:
            self._drop_broken()
        for output in outputs:
            if output.finished:
                self._answer(output.request_id, output=output)
        if time.monotonic() - self._counted >= _COUNT_SECONDS:
            self._count()

    def _answer(self, name: str, **answer: Any) -> None:
        """Give the answer to a row to the job that the row is of, if it still runs."""
        for job in list(self._jobs):
            row = job.running.pop(name, None)
            if row is not None:
                job.written.pop(name, None)
                job.answers.put(EngineAnswer(row.index, **answer))
                self._drop_ended(job)
                return

    def _drop_broken(self) -> None:
        """End the rows whose scores are not numbers."""
        names = sorted(self._broken)
        self._broken.clear()
        self._engine.abort_request(names)
        for name in names:
            self._answer(name, error=NO_NUMBERS)

    def _count(self) -> None:
        """Record the progress of the rows in the engine: for minutes no row may end."""
        self._counted = time.monotonic()
        totals: dict[str, int] = {}
        for state in self._engine.output_processor.request_states.values():
            name = (state.parent_req or state).external_req_id  # a parent, where a row has several answers
            written = state.detokenizer.num_output_tokens() if state.detokenizer else 0
            totals[name] = totals.get(name, 0) + written
        for job in self._jobs:
            job.written = {name: totals[name] for name in job.running if name in totals}

    def _drop_ended(self, job: EngineJob) -> None:
        if not job.waiting and not job.running:
            self._jobs.remove(job)

    def _fail(self, error: Exception) -> None:
        lack = _NO_COMPILER.search(str(error))
        for job in self._jobs:
            job.answers.put(_no_compiler() if lack else EngineDeadError(error))
        self._jobs.clear()
        if lack:  # a fault of the machine that does not affect the process
            self._release()
        self._engine = None


def _known_error(error: Exception, model: str) -> Exception | None:
    """Return the error to raise instead of a failed start, or None to raise it unchanged."""
    text = one_line(error)
    if _NO_ROOM.search(text):  # other processes hold the memory now, perhaps not later
        return MemoryError(text)
    if _NO_COMPILER.search(text):
        return _no_compiler()
    reason = fault_of(error, model)
    if reason is None and _NOT_STARTED.search(text):
        reason = damaged(model)
    if reason is None and isinstance(error, (TypeError, NotImplementedError)):
        reason = text
    return None if reason is None else UserError(f"vLLM cannot load {model}: {reason}")


def _drop_frames(error: BaseException) -> None:
    """Clear the frames of an error and its causes: they hold the weights for as long as the traceback is kept."""
    for cause in cause_chain(error):
        traceback.clear_frames(cause.__traceback__)


def _no_compiler() -> MissingExtraError:
    return MissingExtraError(
        "vLLM compiles a part of this task at run time and found no compiler",
        hint="install g++; or leave out inference.logprobs and model.vllm.enforce_eager: false",
    )
