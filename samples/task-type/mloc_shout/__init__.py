"""The task type `shout`: its `spec`, and the name of its executor. Read by planning, so it imports nothing heavy."""

from __future__ import annotations

from typing import Any

from mloc_prefect.tasks.base import ExecutorRef, TaskSpec, TaskType
from mloc_prefect.tasks.common import CommonSpec


class ShoutSpec(CommonSpec):
    """`spec` of a shout task."""

    data: Any = None
    marks: int = 1


def _executor(_spec: TaskSpec) -> ExecutorRef:
    return ExecutorRef("mloc_shout.executor:ShoutExecutor", engine=False)


SHOUT = TaskType("shout", ShoutSpec, _executor, "returns its items in capitals")
