"""`echo`: returns its spec, without secrets [protocol 4.6, 5]. Used for tests, and the template for new executors.

In addition to the protocol it reads, for tests:

    spec:
      taskType: echo
      echo:
        delay: 2          # seconds before it answers
        row_delay: 0.1    # seconds per row
        fail: "a message" # fail with this message, after the rows
        load: true        # read the rows of data as inference does: data sets, row ranges, shuffles
      data:
        type: list
        items: [a, b, c]  # returned as rows, through the journal
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mloc_prefect.diagnostics.masking import mask_document
from mloc_prefect.execution.row_journal import row_key
from mloc_prefect.executors.common.shard_rows import rows_of_shard

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.execution.protocol import ExecutionRequest


class EchoExecutor:
    """Returns the spec of each task; it keeps no state, so many tasks may run at once."""

    concurrency: ClassVar[int] = 64

    def __init__(self, options: Mapping[str, Any]) -> None:
        del options  # there is no engine to configure

    def run(self, request: ExecutionRequest, context: ExecutionContext) -> Mapping[str, Any]:
        """Return `{"ok": true, "echo": <spec>}`, and `items` when the spec has data items.

        Raises:
            RuntimeError: `spec.echo.fail` asks for it.
            Cancelled: The task was cancelled.
        """
        spec = request.spec
        options = spec.get("echo") if isinstance(spec.get("echo"), dict) else {}
        assert isinstance(options, dict)
        context.sleep(_seconds(options, "delay"))
        items, first = _items(request, load=bool(options.get("load")))
        for index, key in _missing(items, context):
            context.sleep(_seconds(options, "row_delay"))
            context.rows.append(index, key, output=items[index], finish_reason="stop")
            context.progress(len(context.rows), len(items))
        if options.get("fail"):
            raise RuntimeError(str(options["fail"]))
        result: dict[str, Any] = {"ok": True, "echo": mask_document(spec)}
        if items or spec.get("shard"):
            # An iterator: the host streams it into the result file.
            result["items"] = ({**row, "index": first + row["index"]} for row in context.rows.items(len(items)))
            result["_summary"] = {"rows": len(items)}
        return result

    def close(self) -> None:
        """Do nothing: the executor keeps no state."""


def _missing(items: list[Any], context: ExecutionContext) -> list[tuple[int, str]]:
    """Return index and key of the rows that no earlier attempt has finished."""
    keys = [row_key(prompt=repr(item), model="echo", revision=None, sampling={}) for item in items]
    done = context.rows.completed(keys) if keys else {}
    return [(index, key) for index, key in enumerate(keys) if index not in done]


def _items(request: ExecutionRequest, *, load: bool) -> tuple[list[Any], int]:
    """Return the rows, and the index of the first of them in the whole task."""
    if load:
        from mloc_prefect.executors.common.prompt_data import load_prompts
        from mloc_prefect.executors.sources.source_lookup import SourceLookup

        prompts = load_prompts(request.spec, request.upstream, SourceLookup.of(request.settings))
        return [prompt.shown for prompt in prompts], prompts.first
    data = request.spec.get("data")
    items = data.get("items") if isinstance(data, dict) else None
    return rows_of_shard(items if isinstance(items, list) else [], request.spec)


def _seconds(options: Mapping[str, Any], name: str) -> float:
    return float(options.get(name) or 0.0)
