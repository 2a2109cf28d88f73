"""`Executor`: the interface of executor classes, which the host process loads by import path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.execution.protocol import ExecutionRequest


class Executor(Protocol):
    """Code of one or more task types. `executors/echo.py` is the smallest complete example.

    Attributes:
        concurrency: Number of tasks that one host may run at once; further tasks wait. The first runs on the main
            thread of the host, because some libraries require it.
    """

    concurrency: ClassVar[int]

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Store `options` (the engine options that identify the host); load nothing yet."""

    def run(self, request: ExecutionRequest, context: ExecutionContext) -> Mapping[str, Any]:
        """Run the task and return the result object [protocol 5].

        A value may be an iterator of JSON-ready objects: the host streams it into the result file as an array. Keys
        that start with `_` are not written to the file; `_summary` (a small mapping) is shown by displays.

        Raises:
            UserError: The input is wrong; the task is not retried.
            Cancelled: From `context.check()`, after a cancellation.
        """

    def close(self) -> None:
        """Release all resources; called once, when the host exits by itself."""

    # An executor that keeps a model has an attribute `loaded: bool`: whether the model is in memory now. Displays show
    # the model of such hosts only.
    #
    # An executor may also have `sleep() -> bool`: release the memory of the device but keep what makes the next task
    # start fast, and return whether that was done. It is called between tasks, from another thread than `run`, and the
    # next `run` wakes the executor by itself.
