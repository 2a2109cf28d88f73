"""What an executor is: a class, loaded by string path inside the host process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.execution.protocol import ExecutionRequest


class Executor(Protocol):
    """Code of one or more task types. `executors/echo.py` is the smallest complete one.

    Attributes:
        concurrency: Tasks that may be in `run` at once in one host; further ones wait. The first of them runs on the
            main thread of the host, as some libraries ask for it.
    """

    concurrency: ClassVar[int]

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Keep `options` (the engine options that the host is keyed by); load nothing yet."""

    def run(self, request: ExecutionRequest, context: ExecutionContext) -> Mapping[str, Any]:
        """Do the task and return the result object [protocol 5].

        A value may be an iterator of JSON-ready objects: the host streams it into the result file as an array. Keys
        that start with `_` do not reach the file; `_summary` (a small mapping) goes to displays.

        Raises:
            UserError: The input is wrong; the task is not tried again.
            Cancelled: From `context.check()`, when the client has gone.
        """

    def close(self) -> None:
        """Give back what the executor holds; called once, when the host leaves by itself."""

    # An executor that keeps a model has an attribute `loaded: bool`: whether one is in memory now. Displays show the
    # model of such hosts only.
    #
    # An executor may also have `sleep() -> bool`: give back the memory of the device but keep what makes the next task
    # start fast, and return whether that was done. It is called between tasks, beside the threads of `run`, and the
    # next `run` wakes the executor by itself.
