"""`echo`: gives back its spec [protocol 4.6, 5]. The test bench of the machinery, and the template for new executors.

Beside the protocol it reads, for tests:

    spec:
      taskType: echo
      echo:
        delay: 2          # seconds before it answers
        row_delay: 0.1    # seconds for each row
        fail: "a text"    # fail with it, after the rows
        load: true        # read the rows of data as inference does: data sets, row ranges, shuffles
      data:
        type: list
        items: [a, b, c]  # given back as rows, through the journal
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mloc_prefect.execution.rows import row_key
from mloc_prefect.executors.own_rows import own_rows

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
        items, first = _items(request, load=bool(wishes.get("load")))
        for index, key in _missing(items, context):
            context.sleep(_seconds(wishes, "row_delay"))
            context.rows.append(index, key, output=items[index], finish_reason="stop")
            context.progress(len(context.rows), len(items))
        if wishes.get("fail"):
            raise RuntimeError(str(wishes["fail"]))
        result: dict[str, Any] = {"ok": True, "echo": spec}
        if items or spec.get("shard"):
            # An iterator: the host streams it into the file.
            result["items"] = ({**row, "index": first + row["index"]} for row in context.rows.items(len(items)))
            result["_summary"] = {"rows": len(items)}
        return result

    def close(self) -> None:
        """Nothing is held."""


def _missing(items: list[Any], context: ExecutionContext) -> list[tuple[int, str]]:
    """Return index and key of the rows that no earlier attempt finished."""
    keys = [row_key(prompt=repr(item), model="echo", revision=None, sampling={}) for item in items]
    done = context.rows.completed(keys) if keys else {}
    return [(index, key) for index, key in enumerate(keys) if index not in done]


def _items(request: ExecutionRequest, *, load: bool) -> tuple[list[Any], int]:
    """Return the rows, and the number of the first of them in the whole task."""
    if load:
        from mloc_prefect.executors.data import load_prompts
        from mloc_prefect.executors.places import Places

        prompts = load_prompts(request.spec, request.upstream, Places.of(request.settings))
        return [prompt.text for prompt in prompts], prompts.first
    data = request.spec.get("data")
    items = data.get("items") if isinstance(data, dict) else None
    return own_rows(items if isinstance(items, list) else [], request.spec)


def _seconds(wishes: Mapping[str, Any], name: str) -> float:
    return float(wishes.get(name) or 0.0)
