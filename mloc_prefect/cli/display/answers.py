"""The end of a run: its first answers, the paths of its results, and the time it took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from mloc_prefect.execution.host.progress_meter import duration
from mloc_prefect.tasks.chat_messages import shown_prompt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from mloc_prefect.cli.display.run_progress import StageView

_SHOWN = 3  # answers of one stage
_LENGTH = 400  # characters of one answer
_PROMPT_LENGTH = 160
_READ_LIMIT = 16 << 20  # bytes; larger results are not parsed for a preview


def show_answers(console: Console, views: Mapping[str, StageView]) -> None:
    """Print the first answers, the result path and the time of every stage that is DONE."""
    for view in views.values():
        if view.outcome is None or view.outcome.result_path is None:
            continue
        path = Path(view.outcome.result_path)
        console.print(Text.assemble("\n", (view.key, "bold"), (f"  {facts(view)}", "dim")))
        items = read_items(path)
        for item in items[:_SHOWN]:
            console.print(_answer(item))
        if len(items) > _SHOWN:
            console.print(Text(f"  … {len(items) - _SHOWN} more", "dim"))
        console.print(Text.assemble(("  results: ", "dim"), str(path)))


def facts(view: StageView) -> str:
    """Return time, model and tokens of a stage as text."""
    assert view.outcome is not None
    summary = view.outcome.summary or {}
    usage = summary.get("usage") or {}
    parts = ["reused" if view.outcome.reused else duration(view.elapsed(view.ended or 0.0))]
    if summary.get("model"):
        parts.append(str(summary["model"]))
    if usage.get("completion_tokens"):
        parts.append(f"{usage['completion_tokens']} tokens")
    return ", ".join(parts)


def read_items(path: Path) -> list[Any]:
    """Return `items` of a result file [protocol 5], with or without its envelope; empty if there are none to show."""
    try:
        if path.stat().st_size > _READ_LIMIT:
            return []
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []  # a preview must not fail: the path is printed anyway
    inner = content.get("result", content) if isinstance(content, dict) else {}
    whole = inner.get("merged", inner) if isinstance(inner, dict) else {}  # a task with shards has `merged`
    items = whole.get("items") if isinstance(whole, dict) else None
    return items if isinstance(items, list) else []


def shortened(text: str, length: int = _LENGTH) -> str:
    """Return `text` without surrounding whitespace, truncated to `length` characters."""
    text = text.strip()
    return text if len(text) <= length else text[:length].rstrip() + " …"


def _answer(item: Any) -> Text:
    if not isinstance(item, dict):
        return Text(f"  {shortened(str(item))}")
    text = Text().append(f"  [{item.get('index', '')}] ", "dim")
    if item.get("error"):
        return text.append(f"failed: {item['error']}", "red")
    lead = "      "
    if (prompt := shown_prompt(item.get("prompt"))) is not None:
        text.append(shortened(" ".join(prompt.split()), _PROMPT_LENGTH), "dim").append(f"\n{lead}")
    return text.append(shortened(str(item.get("output", ""))).replace("\n", f"\n{lead}"))
