"""`AgentExecutor`: works on the items of a task; each fails alone, and finished ones are not repeated."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from mloc_prefect.execution.protocol import Cancelled, UserError
from mloc_prefect.executors.agent.agent_files import AgentFiles, batch_summary
from mloc_prefect.executors.agent.agent_job import AgentJob
from mloc_prefect.executors.agent.step_journal import StepJournal
from mloc_prefect.executors.common.checkpoint_source import find_weights
from mloc_prefect.executors.common.gpu_memory import free_memory
from mloc_prefect.executors.common.model_options import ModelOptions
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.common.threads import wait_passively
from mloc_prefect.executors.sources.source_lookup import SourceLookup

if TYPE_CHECKING:
    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.execution.protocol import ExecutionRequest
    from mloc_prefect.executors.agent.item_run import ItemOutcome
    from mloc_prefect.executors.agent.search_tool import SearchTool
    from mloc_prefect.executors.transformers.model_engine import Engine

_WATCH_PERIOD = 0.1
_SHOWN_FAILURES = 3


class AgentExecutor:
    """Runs agents. With an endpoint it keeps nothing between tasks, so many may run at once.

    Args:
        options: Engine options of the host; empty for tasks with an endpoint.
    """

    concurrency: ClassVar[int] = 16

    def __init__(self, options: Mapping[str, Any]) -> None:
        del options

    def run(self, request: ExecutionRequest, context: ExecutionContext) -> Mapping[str, Any]:
        """Run one agent task.

        Raises:
            UserError: The spec or the configuration is at fault, or all items (more than `agent.max_failed_items`)
                failed in a way that another attempt would repeat.
            RuntimeError: Items failed, and another attempt may succeed with them.
            Cancelled: The task was cancelled.
        """
        context.phase("reading the task")
        job = AgentJob.read(request)
        for note in job.notes:
            context.log(note, "warning")
        run = _TaskRun(job, context, lambda: self._local_model(job, request, context))
        try:
            _run_loop(run.work())
        finally:
            run.close()
        last = request.attempt > int(request.settings.get("max_retries", 0))
        run.judge(last_attempt=last)
        return run.result()

    def close(self) -> None:
        """Release what is kept; nothing here."""

    def _local_model(self, job: AgentJob, request: ExecutionRequest, context: ExecutionContext) -> Any:
        """Return a model that this process loads."""
        del request, context
        raise UserError(f"the model {job.model.name} was not planned to be loaded here")


class LocalAgentExecutor(AgentExecutor):
    """Runs agents with a model that stays loaded between tasks, on a leased device; one task at a time.

    Args:
        options: Engine options of the host; unused, because every task brings its own.
    """

    concurrency: ClassVar[int] = 1

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        wait_passively()
        self._engine: Engine | None = None

    @property
    def loaded(self) -> bool:
        """Whether a model is in memory."""
        return self._engine is not None

    def close(self) -> None:
        """Drop the model and free the memory of the device."""
        self._engine = None
        free_memory()

    def _local_model(self, job: AgentJob, request: ExecutionRequest, context: ExecutionContext) -> Any:
        from mloc_prefect.executors.agent.engine_model import EngineModel
        from mloc_prefect.executors.transformers.model_engine import load_engine

        spec = SpecReader(request.spec)
        options, sources = ModelOptions.of(spec), SourceLookup.of(request.settings)
        context.phase("finding model")
        location = find_weights(spec, job.model.name, sources, context.task_dir)
        held = self._engine
        if held is None or held.options != options or held.location.fingerprint != location.fingerprint:
            held = None
            self.close()  # before the next one is loaded: two may not fit
            context.check()
            held = self._engine = load_engine(location, options, context.phase, lambda _tokenizer: None)
        return EngineModel(held, job.model).model


class _TaskRun:
    """One attempt at one task; `load` returns a model that this process loads."""

    def __init__(self, job: AgentJob, context: ExecutionContext, load: Callable[[], Any]) -> None:
        self.job = job
        self.load = load
        self.context = context
        self.journal = StepJournal(context.task_dir, context.attempt_dir)
        self.files = AgentFiles(context.task_dir, single=len(job.prompts) == 1)
        self.failures: dict[int, ItemOutcome] = {}
        self.tokens = 0
        self.search: SearchTool | None = None
        self.began = time.monotonic()

    async def work(self) -> None:
        """Work on all items that are not finished.

        Raises:
            Cancelled: The task was cancelled.
        """
        finished = set(self.context.rows.completed(self.job.keys))
        waiting = [index for index in range(len(self.job.prompts)) if index not in finished]
        if not waiting:
            return
        self.context.phase("working")
        self._report()
        await self._check_tools()
        self._open_collections()
        async with self._models() as model:
            room = asyncio.Semaphore(self.job.concurrency)
            work = asyncio.gather(*(self._item(index, model, room) for index in waiting))
            watch = asyncio.ensure_future(self._watch(work))
            try:
                await work
            except asyncio.CancelledError:
                if self.context.cancelled:
                    raise Cancelled from None
                raise
            finally:
                watch.cancel()

    async def _check_tools(self) -> None:
        """Refuse a task whose tools cannot be had here, instead of failing each of its items.

        Raises:
            UserError: There is no sandbox.
        """
        if "python" not in self.job.configuration.tools:
            return
        from mloc_prefect.executors.agent.sandbox.code_sandbox import sandbox_fault

        if fault := await sandbox_fault():
            hint = "choose other tools in spec.agent.tools, or allow namespaces on this machine (mloc doctor)"
            raise UserError(f"the tool python needs a sandbox, which this machine does not allow: {fault} ({hint})")

    def _open_collections(self) -> None:
        configuration = self.job.configuration
        if "search" not in configuration.tools:
            return
        from mloc_prefect.executors.agent.search_tool import SearchTool

        self.search = SearchTool(configuration.collections, self.job.sources)
        self.search.open(self.context.check, self.context.phase)

    def close(self) -> None:
        """Close what the attempt has opened."""
        self.journal.close()
        if self.search is not None:
            self.search.close()

    @contextlib.asynccontextmanager
    async def _models(self) -> Any:
        from mloc_prefect.executors.agent.agent_models import endpoint_client, endpoint_model

        if self.job.model.base_url is None:
            yield self.load()
            return
        async with endpoint_client(self.job.model, self.job.limits.seconds) as client:
            yield endpoint_model(self.job.model, client)

    async def _watch(self, work: asyncio.Future[Any]) -> None:
        while not self.context.cancelled:
            await asyncio.sleep(_WATCH_PERIOD)
        work.cancel()

    async def _item(self, index: int, model: Any, room: asyncio.Semaphore) -> None:
        from mloc_prefect.executors.agent.agent_tools import tools_of
        from mloc_prefect.executors.agent.item_run import ItemOutcome, run_item
        from mloc_prefect.executors.agent.item_steps import ItemSteps
        from mloc_prefect.executors.agent.mcp_tools import server_tools

        job, prompt = self.job, self.job.prompts[index]
        async with room:
            steps = ItemSteps(
                job.keys[index], self.journal, job.limits.tool_seconds, job.limits.tool_output_bytes, self._report
            )
            if prompt.error is not None:
                outcome = ItemOutcome(error=prompt.error)
            else:
                tools = tools_of(job.configuration, self.context.task_dir, job.sources.allowed)
                tools += [self.search.search] if self.search is not None else []
                servers = server_tools(job.configuration.servers, job.limits.tool_seconds)
                outcome = await run_item(prompt.text, job, steps, model, tools, servers)
            self.tokens += steps.completion_tokens
            self._record(index, outcome, steps)

    def _record(self, index: int, outcome: ItemOutcome, steps: Any) -> None:
        prompt = self.job.prompts[index]
        self.files.write_item(index, prompt.text, outcome.output, outcome.error, steps)
        if outcome.error is not None:
            self.failures[index] = outcome
            self.context.log(f"item {self.job.prompts.first + index}: {outcome.error}", "warning")
        self.context.rows.append(
            index,
            self.job.keys[index],
            output=outcome.output,
            finish_reason="completed" if outcome.error is None else "failed",
            usage={
                "prompt_tokens": steps.prompt_tokens,
                "completion_tokens": steps.completion_tokens,
                "steps": steps.requests,
                "tool_calls": steps.calls,
            },
            error=outcome.error,
        )
        self._report()

    def _report(self) -> None:
        done = len(self.context.rows) + len(self.failures)
        self.context.progress(done, len(self.job.prompts), tokens_out=self.tokens)

    def judge(self, *, last_attempt: bool) -> None:
        """Return if the task may count as done.

        Items that failed for a reason that may pass are tried again, as long as there are attempts.

        Raises:
            UserError: Too many items failed, and would fail again.
            RuntimeError: Items failed, and another attempt may succeed.
        """
        failures, total = self.failures, len(self.job.prompts)
        if not failures:
            return
        passing = any(outcome.passing for outcome in failures.values())
        allowed = self.job.allowed_failures if self.job.allowed_failures is not None else total - 1
        if len(failures) <= allowed and (last_attempt or not passing):
            return
        shown = sorted(failures.items())[:_SHOWN_FAILURES]
        text = "; ".join(f"item {self.job.prompts.first + index}: {outcome.error}" for index, outcome in shown)
        more = f"; and {len(failures) - len(shown)} more" if len(failures) > len(shown) else ""
        message = f"{len(failures)} of {total} items failed: {text}{more}"
        raise RuntimeError(message) if passing else UserError(message)

    def result(self) -> dict[str, Any]:
        """Return the result object [protocol 5]."""
        job, rows = self.job, self.context.rows
        total, failed = len(job.prompts), len(rows.failed())
        summary = batch_summary(total - failed, failed)
        self.files.write_summary(summary)
        sums = rows.usage(total)
        read, written = int(sums.get("prompt_tokens", 0)), int(sums.get("completion_tokens", 0))
        log = {"execution_log": self.files.log}
        single = {"task": job.prompts[0].text, **log}
        return {
            "ok": True,
            "model": job.configuration.name,
            "items": self._items(),
            "usage": {
                "execution_time_sec": round(time.monotonic() - self.began, 3),
                "num_requests": total,
                "agent_config": job.configuration.name,
                "prompt_tokens": read,
                "completion_tokens": written,
                "total_tokens": read + written,
                "steps": int(sums.get("steps", 0)),
                "tool_calls": int(sums.get("tool_calls", 0)),
            },
            "metadata": single if total == 1 else {"tasks_count": total, **log, "batch_summary": summary},
            "_summary": {
                "engine": "agent",
                "model": job.model.name,
                "configuration": job.configuration.name,
                "rows": total,
                "reused_rows": rows.reused,
                "failed_rows": failed,
            },
        }

    def _items(self) -> Iterator[dict[str, Any]]:
        prompts = self.job.prompts
        for row in self.context.rows.items(len(prompts)):
            prompt = prompts[row["index"]]
            metadata = {"metadata": prompt.metadata} if prompt.metadata else {}
            yield {**row, "index": prompts.first + row["index"], "prompt": prompt.text, **metadata}


def _run_loop(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine; unlike `asyncio.run`, do not wait for threads that look up a name or read a slow disk."""
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(work)
    finally:
        rest = asyncio.all_tasks(loop)
        for task in rest:
            task.cancel()
        if rest:
            loop.run_until_complete(asyncio.wait(rest))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
