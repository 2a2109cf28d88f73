"""The work of `mloc run`: check, preflight, runtime, server, flow, display, answers."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from mloc_prefect.cli.commands.check import check_file, show_findings
from mloc_prefect.cli.display.console import print_json
from mloc_prefect.cli.display.run_display import choose
from mloc_prefect.cli.error_boundary import EXIT_INTERRUPTED, EXIT_SPEC, show_error
from mloc_prefect.cli.interrupt import run_interruptible
from mloc_prefect.cli.prefect_api import (
    api_of_up,
    configured_api_url,
    has_login,
    login_page,
    mark_cancelled,
    own_login,
    quiet_prefect,
    reachable,
    run_page,
    using_api,
)
from mloc_prefect.errors import ExecutionError, MissingExtraError, MlocError, StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.bridge.local_run import LocalRunRecords
    from mloc_prefect.cli.display.run_display import LiveDisplay, PlainDisplay
    from mloc_prefect.cli.display.run_progress import RunProgress
    from mloc_prefect.execution.hosts import HostProvider
    from mloc_prefect.flow.options import RunOptions
    from mloc_prefect.flow.outcome import WorkflowOutcome
    from mloc_prefect.plan.workflow_plan import WorkflowPlan
    from mloc_prefect.settings import MlocSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """The options of `mloc run`."""

    file: str
    overrides: tuple[str, ...] = ()
    results_dir: str | None = None
    ignore_resources: bool = False
    as_json: bool = False
    resume: str | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    strict: bool = False
    verbose: bool = False


def run_command(wanted: RunSettings) -> int:
    """Run the spec and return the exit code. With `--json`, the last line of stdout is always the result object."""
    if not wanted.verbose:
        quiet_prefect()
    display = choose(sys.stderr if wanted.as_json else sys.stdout)
    code = 1
    try:
        code = _run(wanted, display)
    except MlocError as error:
        show_error(error)
        code = error.exit_code
    except KeyboardInterrupt:
        display.say("cancelled")
        code = EXIT_INTERRUPTED
    finally:
        if wanted.as_json:
            print_json(result_object(display.progress, ok=code == 0))
    return code


def _run(wanted: RunSettings, display: LiveDisplay | PlainDisplay) -> int:
    checked = check_file(wanted.file, strict=wanted.strict, overrides=wanted.overrides, params=wanted.params)
    show_findings(checked)
    if checked.plan is None:
        return EXIT_SPEC
    session = _Session(wanted, checked.plan, checked.text, display)
    with display.showing():
        outcome = run_interruptible(session.run, on_interrupt=lambda: display.say("cancelling the run …"))
    show_failures(outcome)
    if not wanted.as_json:
        session.show_end(outcome)
    return 0 if outcome.ok else ExecutionError.exit_code


def result_object(progress: RunProgress, *, ok: bool) -> dict[str, Any]:
    """Return the object that `--json` prints; `tasks` is empty if nothing was started."""
    tasks = [
        {
            "node": view.node,
            "task_id": progress.task_ids.get(view.key),
            "status": view.outcome.status if view.outcome else "CANCELLED",
            "result_path": view.outcome.result_path if view.outcome else None,
            "error": view.outcome.error if view.outcome else None,
        }
        for view in progress.stages.values()
    ]
    return {"ok": ok, "flow_run_id": progress.flow_run_id, "tasks": tasks}


class _Session:
    def __init__(self, wanted: RunSettings, plan: WorkflowPlan, text: str, display: LiveDisplay | PlainDisplay) -> None:
        self._wanted, self._plan, self._text, self._display = wanted, plan, text, display
        self._page: str | None = None
        self._login: str | None = None
        self._options: RunOptions | None = None

    async def run(self) -> WorkflowOutcome:
        """Run the plan and return its outcome.

        Raises:
            MlocError: Nothing was started.
            asyncio.CancelledError: The run was interrupted and is Cancelled in Prefect.
        """
        from mloc_prefect.services.local_runtime.runtime_client import ensure_runtime

        options = self._preflight()
        self._display.step("loading Prefect")
        url, auth = await asyncio.to_thread(configured_api_url), None
        home = options.settings.home
        if url is None and (found := api_of_up(home)) is not None:
            url, auth = found
        elif url is not None and not has_login():
            auth = own_login(url, home)
        if url is not None:
            await reachable(url, auth)
        runtime = await ensure_runtime(options.settings, server=url is None, on_progress=self._display.step)
        async with runtime:
            auth = auth or runtime.auth
            self._login = login_page(home) if auth else None
            with using_api(url or runtime.api_url, auth):
                return await self._flow(options, runtime.hosts)

    def _preflight(self) -> RunOptions:
        from mloc_prefect.artifacts.private_files import keep_private
        from mloc_prefect.cli.resuming import check_resumable
        from mloc_prefect.flow.options import RunOptions
        from mloc_prefect.flow.preflight import check_runnable
        from mloc_prefect.hardware.inventory import read_inventory
        from mloc_prefect.settings import get_settings

        options = RunOptions(
            settings=get_settings(results_dir=self._wanted.results_dir),
            observer=self._display.progress,
            params=self._wanted.params,
            submission_id=self._wanted.resume,
            strict=self._wanted.strict,
        )
        check_resumable(self._plan, options)
        inventory = read_inventory(options.settings)
        check_runnable(self._plan, options, inventory, ignore_resources=self._wanted.ignore_resources)
        keep_private(options.settings)
        self._options = options
        return replace(options, shown=self._shown(options.settings))

    def _shown(self, settings: MlocSettings) -> dict[str, Any]:
        """Return the flow parameters from which a bridge on the same server builds the records of this run."""
        if settings.redis_url is None and api_of_up(settings.home) is None:
            return {}  # no bridge needs them; a spec may contain secrets, and Prefect shows parameters
        from mloc_prefect.flow.spec_parameters import pack, pack_overrides, pack_values

        root = settings.results_root
        shown: dict[str, Any] = {"spec": pack(self._text, root), "file": self._plan.file}
        if self._wanted.params:
            shown["parameters"] = pack_values(self._wanted.params, root)
        if self._wanted.overrides:
            shown["overrides"] = pack_overrides(self._wanted.overrides, root)
        return shown

    async def _flow(self, options: RunOptions, hosts: HostProvider) -> WorkflowOutcome:
        from mloc_prefect.flow.build import run_plan
        from mloc_prefect.flow.dispatcher import on_hosts
        from mloc_prefect.prefect_ext.cancel_watch import CancelWatch
        from mloc_prefect.prefect_ext.run_control import RunContext, use_run_context

        progress = self._display.progress
        async with AsyncExitStack() as stack:
            cancels = await stack.enter_async_context(CancelWatch().running())
            stack.enter_context(use_run_context(RunContext(cancel_watch=cancels)))
            records = await self._records(stack, options)
            options = replace(options, dispatcher=on_hosts(options.settings, hosts))
            if records is not None:
                options = replace(options, watch=records.watch)
            work = asyncio.ensure_future(run_plan(self._plan, options=options))

            def cancelled_in_prefect() -> None:
                self._display.say("the run was cancelled in Prefect")
                work.cancel()

            def announce(flow_run_id: str) -> None:
                self._announce(flow_run_id)
                cancels.add(UUID(flow_run_id), cancelled_in_prefect)  # there is no worker that would cancel it

            progress.announce = announce
            try:
                return await work
            except asyncio.CancelledError:
                await mark_cancelled(progress.flow_run_id)
                raise
            finally:
                if records is not None and progress.flow_run_id is not None:
                    await records.settle(options.submission_id or progress.flow_run_id)

    async def _records(self, stack: AsyncExitStack, options: RunOptions) -> LocalRunRecords | None:
        """Keep MLOC's task records and messages of this run if a Redis is configured."""
        url, progress = options.settings.redis_url, self._display.progress
        if url is None:
            return None
        from mloc_prefect.bridge.local_run import publish_local_run

        def root() -> str | None:
            return progress.flow_run_id

        def submission() -> str | None:
            return options.submission_id or progress.flow_run_id

        try:
            return await stack.enter_async_context(publish_local_run(options.settings, url, root, submission))
        except (StoreError, MissingExtraError) as error:
            self._display.say(f"no task records are written for this run: {error.message}")
            return None

    def _announce(self, flow_run_id: str) -> None:
        self._page = run_page(flow_run_id)
        self._display.say(f"run {flow_run_id} of {self._plan.name}: {self._page}")

    def show_end(self, outcome: WorkflowOutcome) -> None:
        """Print answers, result paths and a summary line."""
        from rich.text import Text

        from mloc_prefect.cli.display.answers import show_answers
        from mloc_prefect.cli.display.console import stdout
        from mloc_prefect.execution.host.progress_meter import duration

        progress, console = self._display.progress, stdout()
        show_answers(console, progress.stages)
        console.print()
        if self._page:
            console.print(Text.assemble(("run: ", "dim"), self._page))
        if self._login:
            console.print(Text.assemble(("log in to that page once: ", "dim"), self._login))
        done, count = sum(task.ok for task in outcome.tasks), len(outcome.tasks)
        word = ("done", "bold green") if outcome.ok else ("failed", "bold red")
        console.print(
            Text.assemble(word, f": {done} of {count} stages in {duration(progress.clock() - progress.began)}")
        )
        if not outcome.ok and self._wanted.file != "-":
            console.print(Text.assemble(("resume with: ", "dim"), self._command_again(outcome)))

    def _command_again(self, outcome: WorkflowOutcome) -> str:
        from mloc_prefect.cli.resuming import command_again, leftovers

        run_id = self._wanted.resume or outcome.flow_run_id
        kept = self._options is not None and leftovers(self._plan, self._options, run_id)
        return command_again(self._wanted, run_id if kept else None)


def show_failures(outcome: WorkflowOutcome) -> None:
    """Print an `error:` line for each failed stage, and a `not run:` line for each stage that depended on one."""
    from mloc_prefect.cli.display.console import labelled, stderr
    from mloc_prefect.flow.outcome import blame

    console = stderr()
    for task in outcome.tasks:
        name = f"stage {task.key!r}: " if len(outcome.tasks) > 1 else ""
        if task.blamed:
            why = blame({key: outcome.task(key).status for key in task.blamed})
            console.print(labelled("not run", name + why, "yellow"))
        elif not task.ok:
            console.print(labelled("error", name + (task.error or "no reason given"), "bold red"))
