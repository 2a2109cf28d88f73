"""Items and token counts of a result, the same for every engine [protocol 5]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mloc_prefect.execution.row_journal import RowJournal
    from mloc_prefect.executors.common.prompt_data import Prompts
    from mloc_prefect.executors.common.rendering import RenderStyle


def items_of(journal: RowJournal, prompts: Prompts, style: RenderStyle) -> Iterator[dict[str, Any]]:
    """Yield the items of the result in input order, each with prompt and metadata; shards use indices of the task."""
    for row in journal.items(len(prompts)):
        prompt = prompts[row["index"]]
        rendered = row.pop("rendered_prompt", None) or style.render(prompt)
        metadata = {**prompt.metadata, "prompt": prompt.shown, "rendered_prompt": rendered}
        yield {**row, "index": prompts.first + row["index"], "prompt": prompt.shown, "metadata": metadata}


def usage_of(journal: RowJournal, total: int) -> dict[str, int]:
    """Return the token counts of all rows, those of earlier attempts included; padding is not counted."""
    sums = journal.usage(total)
    read, written = int(sums.get("prompt_tokens", 0)), int(sums.get("completion_tokens", 0))
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "num_requests": total,
    }


def engine_choice(settings: Mapping[str, Any]) -> str:
    """Return why this engine was chosen, as the dispatcher recorded it in `ExecutionRequest.settings`."""
    return str(settings.get("engine_why") or "the plan chose it for this task type")
