"""`echo`: gives back its spec [protocol 4.6, 5]. The test bench of the machinery, and the template for new executors.

Beside the protocol it reads, for tests:

    spec:
      taskType: echo
      echo:
        delay: 2          # seconds before it answers
        row_delay: 0.1    # seconds for each row
        fail: "a text"    # fail with it, after the rows
      data:
        type: list
        items: [a, b, c]  # given back as rows, through the journal
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mloc_prefect.execution.rows import row_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.execution.protocol import ExecutionRequest


class EchoExecutor:
    """Holds nothing, so many tasks may run at once."""

    concurrency: ClassVar[int] = 64

    def __init__(self, options: Mapping[str, Any]) -> None:
        del options  # there is no engine to configure

    def run(self, request: ExecutionRequest, context: ExecutionContext) -> Mapping[str, Any]:
        """Return `{"ok": true, "echo": <spec>}`, and `items` when the spec has data items.

        Raises:
            RuntimeError: `spec.echo.fail` asks for it.
            Cancelled: The client has gone.
        """
        spec = request.spec
        wishes = spec.get("echo") if isinstance(spec.get("echo"), dict) else {}
        assert isinstance(wishes, dict)
        context.sleep(_seconds(wishes, "delay"))
        items = _items(spec)
        for index, key in _missing(items, context):
            context.sleep(_seconds(wishes, "row_delay"))
            context.rows.append(index, key, output=items[index], finish_reason="stop")
            context.progress(len(context.rows), len(items))
        if wishes.get("fail"):
            raise RuntimeError(str(wishes["fail"]))
        result: dict[str, Any] = {"ok": True, "echo": spec}
        if items:
            result["items"] = context.rows.items(len(items))  # an iterator: the host streams it into the file
            result["_summary"] = {"rows": len(items)}
        return result

    def close(self) -> None:
        """Nothing is held."""


def _missing(items: list[Any], context: ExecutionContext) -> list[tuple[int, str]]:
    """Return index and key of the rows that no earlier attempt finished."""
    keys = [row_key(prompt=repr(item), model="echo", revision=None, sampling={}) for item in items]
    done = context.rows.completed(keys) if keys else {}
    return [(index, key) for index, key in enumerate(keys) if index not in done]


def _items(spec: Mapping[str, Any]) -> list[Any]:
    data = spec.get("data")
    items = data.get("items") if isinstance(data, dict) else None
    return items if isinstance(items, list) else []


def _seconds(wishes: Mapping[str, Any], name: str) -> float:
    return float(wishes.get(name) or 0.0)
