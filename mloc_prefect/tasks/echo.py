"""`echo`: returns its spec; for testing pipelines [protocol 4.6]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.tasks.base import ExecutorRef, TaskType
from mloc_prefect.tasks.common import CommonSpec

if TYPE_CHECKING:
    from mloc_prefect.tasks.base import TaskSpec


class EchoSpec(CommonSpec):
    """`spec` of an echo task: any field is accepted and returned."""

    data: Any = None
    echo: Any = None


def _executor(_spec: TaskSpec) -> ExecutorRef:
    return ExecutorRef("mloc_prefect.executors.echo:EchoExecutor", engine=False)


ECHO = TaskType("echo", EchoSpec, _executor, "returns its spec", shardable=True)
