"""The executor of `shout`; it is imported in a process of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.execution.row_journal import row_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.execution.protocol import ExecutionRequest


class ShoutExecutor:
    """Keeps no state, so many tasks may run at once."""

    concurrency: ClassVar[int] = 64

    def __init__(self, options: Mapping[str, Any]) -> None:
        del options

    def run(self, request: ExecutionRequest, context: ExecutionContext) -> Mapping[str, Any]:
        """Return each item in capitals.

        Raises:
            UserError: There are no items.
        """
        data = request.spec.get("data") or {}
        if not isinstance(data.get("items"), list):
            raise UserError("spec.data.items must be a list")
        items = [str(item) for item in data["items"]]
        marks = "!" * int(request.spec.get("marks") or 1)
        keys = [row_key(prompt=item, model="shout", revision=None, sampling={"marks": marks}) for item in items]
        done = context.rows.completed(keys)  # rows of earlier attempts
        for index, (key, item) in enumerate(zip(keys, items, strict=True)):
            if index not in done:
                context.check()  # raises if the task was cancelled
                context.rows.append(index, key, output=item.upper() + marks)
                context.progress(len(context.rows), len(items))
        return {"ok": True, "model": "shout", "items": context.rows.items(len(items))}

    def close(self) -> None:
        """Release nothing: there is no model."""
