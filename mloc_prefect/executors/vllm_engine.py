"""The thread that owns the vLLM engine: it alone loads, feeds and steps it; tasks hand it rows and take answers."""

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
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.load_errors import damaged, fault_of
from mloc_prefect.executors.vllm_loading import loading_phases
from mloc_prefect.executors.vllm_parameters import refusals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_T = TypeVar("_T")
_COUNT_SECONDS = 1.0
_NO_ROOM = re.compile(r"less than (desired [GC]PU memory|the engine's budget|requested memory for kv)")
_NOT_STARTED = re.compile(r"initialization failed")  # what is wrong stands in the log of another process
_NO_COMPILER = re.compile(r"No working C\+\+ compiler|Failed to find C compiler")


class EngineDeadError(RuntimeError):
    """The engine failed in the middle of its work; only a new process helps."""

    def __init__(self, cause: BaseException) -> None:
        text = " ".join(f"{type(cause).__name__}: {cause}".split())[:1000]
        super().__init__(f"EngineDeadError: the vLLM engine stopped: {text}")


@dataclass(frozen=True, slots=True)
class Row:
    """One row for the engine.

    Attributes:
        index: Its place in the input.
        tokens: Token ids of the prompt.
        parameters: Its `SamplingParams`.
        lora: Its `LoRARequest`, or None.
    """

    index: int
    tokens: tuple[int, ...]
    parameters: Any
    lora: Any = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one row: the `RequestOutput`, or why the engine did not take it."""

    index: int
    output: Any = None
    error: str | None = None


@dataclass(eq=False)
class Job:
    """The rows of one task.

    Attributes:
        waiting: Rows that the engine has not got yet, in order.
        answers: What ended, and the error that ended everything.
        running: Rows in the engine, by request id.
        written: Tokens that those have written when they were last counted.
    """

    waiting: deque[Row]
    answers: queue.SimpleQueue[Answer | BaseException] = field(default_factory=queue.SimpleQueue)
    running: dict[str, Row] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)

    def live(self) -> tuple[int, int]:
        """Return the tokens read and written of the rows in the engine; for any thread."""
        counted = [(self.running.get(name), count) for name, count in list(self.written.items())]
        read = sum(len(row.tokens) for row, count in counted if row is not None and count)
        return read, sum(count for row, count in counted if row is not None)


class EngineLoop:
    """One engine and its thread.

    Rows of all jobs share the engine. It always has more rows than it can run at once, as long as there are any, so
    that a row that ends makes room for the next one at once; jobs take turns in handing over rows.
    """

    def __init__(self) -> None:
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._jobs: list[Job] = []
        self._engine: Any = None
        self._number = 0
        self._counted = 0.0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="vllm-engine", daemon=True)
        self._thread.start()

    def load(self, arguments: Mapping[str, Any], on_phase: Callable[[str, float | None], None]) -> Future[Any]:
        """Load an engine; the result is the `LLMEngine`.

        Raises:
            UserError: In the future: vLLM refuses the arguments or the model.
            MemoryError: In the future: other processes hold the memory that it needs.
            MissingExtraError: In the future: it compiles something, and there is no compiler.
        """

        def action() -> Any:
            from vllm.engine.arg_utils import EngineArgs
            from vllm.usage.usage_lib import UsageContext
            from vllm.v1.engine.llm_engine import LLMEngine

            if self._engine is not None:  # of a task that was cancelled while it loaded
                self._release()
            try:
                with loading_phases(on_phase):
                    self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments), UsageContext.LLM_CLASS)
            except Exception as error:
                _let_go(error)
                self._release()
                told = _told(error, str(arguments["model"]))
                if told is None:
                    raise
                raise told from error
            return self._engine

        return self.call(action)

    def unload(self) -> Future[None]:
        """Give the engine's memory back."""

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
            except BaseException as error:  # boundary: it is raised where the result is asked for
                done.set_exception(error)

        self._commands.put(command)
        return done

    def try_parameters(self, row: Row) -> Future[None]:
        """See whether the engine takes the parameters of `row`, on its first token alone; nothing is generated.

        Raises:
            UserError: In the future: it does not. Each row of the task would be refused with the same words.
        """

        def action() -> None:
            name = "parameters"
            try:
                self._request(name, replace(row, tokens=row.tokens[:1]))
            except refusals() as error:
                raise UserError(f"spec.inference: {' '.join(str(error).split())[:500]}") from None
            self._engine.abort_request([name])

        return self.call(action)

    def submit(self, job: Job) -> None:
        """Start the rows of `job`."""
        self.call(lambda: self._jobs.append(job))

    def cancel(self, job: Job) -> Future[None]:
        """Drop what is left of `job`."""

        def action() -> None:
            job.waiting.clear()
            if job.running and self._engine is not None:
                self._engine.abort_request(list(job.running))
            job.running.clear()
            if job in self._jobs:
                self._jobs.remove(job)

        return self.call(action)

    def end(self) -> None:
        """Let the thread end."""

        def action() -> None:
            self._ended = True

        self.call(action)

    def _release(self) -> None:
        """Give back what the engine holds, or what one that failed to load has left behind."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        engine, self._engine = self._engine, None
        if engine is not None:
            engine.engine_core.shutdown()
        del engine
        gc.collect()
        cleanup_dist_env_and_memory()

    def _run(self) -> None:
        while not self._ended:
            self._take_commands()
            if self._engine is None or not self._jobs:
                continue
            try:
                self._feed()
                self._step()
            except Exception as error:  # boundary: the failure of the engine is the failure of each of its tasks
                self._fail(error)

    def _take_commands(self) -> None:
        """Do what is asked for; waits when there are no rows to work on."""
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

    def _add(self, job: Job, row: Row) -> None:
        self._number += 1
        name = f"row-{self._number}"
        try:
            self._request(name, row)
        except refusals() as error:
            job.answers.put(Answer(row.index, error=" ".join(str(error).split())[:500]))
        else:
            job.running[name] = row
        self._drop_ended(job)

    def _request(self, name: str, row: Row) -> None:
        prompt = {"prompt_token_ids": list(row.tokens)}
        self._engine.add_request(name, prompt, row.parameters, lora_request=row.lora)

    def _step(self) -> None:
        if not self._engine.has_unfinished_requests():
            return
        for output in self._engine.step():
            if not output.finished:
                continue
            for job in list(self._jobs):
                row = job.running.pop(output.request_id, None)
                if row is not None:
                    job.written.pop(output.request_id, None)
                    job.answers.put(Answer(row.index, output))
                    self._drop_ended(job)
                    break
        if time.monotonic() - self._counted >= _COUNT_SECONDS:
            self._count()

    def _count(self) -> None:
        """Note how far the rows in the engine are: those that have ended alone say nothing for minutes."""
        self._counted = time.monotonic()
        totals: dict[str, int] = {}
        for state in self._engine.output_processor.request_states.values():
            name = (state.parent_req or state).external_req_id  # a parent, where a row has several answers
            written = state.detokenizer.num_output_tokens() if state.detokenizer else 0
            totals[name] = totals.get(name, 0) + written
        for job in self._jobs:
            job.written = {name: totals[name] for name in job.running if name in totals}

    def _drop_ended(self, job: Job) -> None:
        if not job.waiting and not job.running:
            self._jobs.remove(job)

    def _fail(self, error: Exception) -> None:
        lack = _NO_COMPILER.search(str(error))
        for job in self._jobs:
            job.answers.put(_no_compiler() if lack else EngineDeadError(error))
        self._jobs.clear()
        if lack:  # a mistake of the machine, with which the process goes on
            self._release()
        self._engine = None


def _told(error: Exception, model: str) -> Exception | None:
    """Return what to raise in place of an error of the start, None when it is to be seen as it is."""
    text = " ".join(str(error).split())
    if _NO_ROOM.search(text):  # others hold the memory now; that may pass
        return MemoryError(text)
    if _NO_COMPILER.search(text):
        return _no_compiler()
    reason = fault_of(error, model)
    if reason is None and _NOT_STARTED.search(text):
        reason = damaged(model)
    if reason is None and isinstance(error, (TypeError, NotImplementedError)):
        reason = text
    return None if reason is None else UserError(f"vLLM cannot load {model}: {reason}")


def _let_go(error: BaseException) -> None:
    """Drop what the frames of an error hold: the weights, as long as anybody keeps the error for its traceback."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def _no_compiler() -> MissingExtraError:
    return MissingExtraError(
        "vLLM compiles a part of this task at run time and finds no compiler here",
        hint="install g++; or leave out inference.logprobs and model.vllm.enforce_eager: false",
    )
