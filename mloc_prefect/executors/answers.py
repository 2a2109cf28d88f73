"""What engines share around rows: the result's items and counts, and whether too many rows failed. [protocol 5]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from mloc_prefect.execution.rows import RowJournal
    from mloc_prefect.executors.data import Prompts
    from mloc_prefect.executors.rendering import Style

_SHOWN_FAILURES = 3


def items_of(journal: RowJournal, prompts: Prompts, style: Style) -> Iterator[dict[str, Any]]:
    """Yield the items of the result, in input order, each with its prompt and metadata; a shard's by whole numbers."""
    for row in journal.items(len(prompts)):
        prompt = prompts[row["index"]]
        rendered = row.pop("rendered_prompt", None) or style.render(prompt.text)
        metadata = {**prompt.metadata, "prompt": prompt.text, "rendered_prompt": rendered}
        yield {**row, "index": prompts.first + row["index"], "prompt": prompt.text, "metadata": metadata}


def usage_of(journal: RowJournal, total: int) -> dict[str, int]:
    """Return the counts of all rows, those of earlier attempts included; padding is not counted."""
    sums = journal.usage(total)
    read, written = int(sums.get("prompt_tokens", 0)), int(sums.get("completion_tokens", 0))
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "num_requests": total,
    }


def judge(
    failures: Mapping[int, str], prompts: Prompts, *, allowed: int, may_go_better: bool, attempt_dir: Path
) -> None:
    """Return if at most `allowed` of the rows failed.

    Raises:
        UserError: More did, and all of them must fail again.
        RuntimeError: More did, and another attempt may go better.
    """
    if len(failures) <= allowed:
        return
    shown = sorted(failures.items())[:_SHOWN_FAILURES]
    text = "; ".join(f"row {prompts.first + index}: {problem}" for index, problem in shown)
    more = f"; and {len(failures) - len(shown)} more" if len(failures) > len(shown) else ""
    message = (
        f"{len(failures)} of {len(prompts)} rows failed (inference.max_failed_rows is {allowed}): "
        f"{text}{more}. The other rows are kept in {attempt_dir}"
    )
    raise RuntimeError(message) if may_go_better else UserError(message)


def engine_choice(settings: Mapping[str, Any]) -> str:
    """Return why this engine was chosen: what the dispatcher noted in `ExecutionRequest.settings`."""
    return str(settings.get("engine_why") or "the plan chose it for this task type")
