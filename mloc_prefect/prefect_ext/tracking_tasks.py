"""Tracking tasks: Prefect shows a child run in its parent's run by a task run that links the two."""

from __future__ import annotations

from copy import copy
from functools import cache
from typing import TYPE_CHECKING, Any

from prefect.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import TaskRun
    from prefect.context import FlowRunContext


def tracking_task(
    fn: Callable[..., Any], name: str, *, key: str | None = None, version: str | None = None
) -> Task[..., Any]:
    """Return the task that stands for a child run in its parent's run.

    Args:
        fn: What the child runs; it is not called.
        name: Name of the task run.
        key: Distinguishes it from others of the same function.
        version: Version of the flow.
    """
    if key:  # a copy: Prefect reads the source of each function of a task
        task: Task[..., Any] = copy(_template())
        task.name, task.version, task.task_key = name, version, key
    else:
        task = Task(fn=fn, name=name, version=version)
    task._is_subflow_tracking_task = True  # type: ignore[attr-defined]  # as the stock engine marks it
    return task


@cache
def _template() -> Task[..., Any]:
    async def tracked(upstream: Any = None) -> None: ...

    return Task(fn=tracked)


async def create_tracking_run(
    task: Task[..., Any], client: PrefectClient, context: FlowRunContext, *, keyed: bool = True, **more: Any
) -> TaskRun:
    """Create the task run of a tracking task, or return the one that exists.

    Args:
        task: What `tracking_task` returned.
        client: Open client.
        context: Context of the parent run.
        keyed: The task has a key of its own, so every request for it means the same task run.
        more: Further arguments of `Task.create_run`.
    """
    if keyed:
        context.task_run_dynamic_keys.pop(task.task_key, None)
    return await task.create_run(client=client, flow_run_context=context, **more)


async def child_task(client: PrefectClient, context: FlowRunContext, name: str) -> UUID:
    """Return the id of the task run that stands for a run which this process does not start as a flow.

    Args:
        client: Open client.
        context: Context of the parent run.
        name: Names the child among those of its parent, whatever start of it.
    """

    async def attempt() -> None: ...

    task = tracking_task(attempt, name, key=f"mloc-attempt-{name}")
    return (await create_tracking_run(task, client, context, parameters={})).id
