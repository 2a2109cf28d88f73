"""Executors that wait for the test within an attempt, so that the test cannot act too late. Loaded inside hosts.

`spec["hold"]` is `[rows, file]`: when this many rows are finished (earlier attempts included), but not all, the attempt
waits until the file exists. Without it they behave like their base classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.executors.echo import EchoExecutor
from mloc_prefect.executors.transformers.transformers_executor import TransformersExecutor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.execution.protocol import ExecutionRequest


class Held:
    """A context whose progress reports block until the test allows them."""

    def __init__(self, context: ExecutionContext, rows: int, file: str) -> None:
        self._context, self._rows, self._file = context, rows, Path(file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def progress(self, done: int, total: int | None, **extra: Any) -> None:
        """Report progress, and wait where the test requested it."""
        self._context.progress(done, total, **extra)
        if done >= self._rows and done != total:
            self._context.flush()
            while not self._file.exists():
                self._context.sleep(0.01)


class Echo(EchoExecutor):
    """Echo that waits for the test."""

    def run(self, request: ExecutionRequest, context: ExecutionContext) -> Mapping[str, Any]:
        return super().run(request, _held(request, context))


class Transformers(TransformersExecutor):
    """Inference that waits for the test."""

    def run(self, request: ExecutionRequest, context: ExecutionContext) -> Mapping[str, Any]:
        return super().run(request, _held(request, context))


def _held(request: ExecutionRequest, context: ExecutionContext) -> Any:
    hold = request.spec.get("hold")
    return Held(context, *hold) if hold else context
