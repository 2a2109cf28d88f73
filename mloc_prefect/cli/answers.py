"""What a finished run shows: the first answers, where the results lie, how long it took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from mloc_prefect.execution.meter import duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from mloc_prefect.cli.progress import StageView

_SHOWN = 3  # answers of one stage
_LENGTH = 400  # characters of one answer
_PROMPT_LENGTH = 160
_READ_LIMIT = 16 << 20  # bytes; larger results are not parsed for a preview


def show_answers(console: Console, views: Mapping[str, StageView]) -> None:
    """Print the first answers of every stage that is DONE, the result path and the time."""
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
    """Return time, rows and tokens of a stage in words."""
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
    """Return `items` of a result file [protocol 5], with or without its envelope; empty when there are none to show."""
    try:
        if path.stat().st_size > _READ_LIMIT:
            return []
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []  # a preview is no place to fail: the path is printed anyway
    inner = content.get("result", content) if isinstance(content, dict) else {}
    whole = inner.get("merged", inner) if isinstance(inner, dict) else {}  # of a divided task, or not
    items = whole.get("items") if isinstance(whole, dict) else None
    return items if isinstance(items, list) else []


def shortened(text: str, length: int = _LENGTH) -> str:
    """Return `text` without outer blanks, cut after `length` characters."""
    text = text.strip()
    return text if len(text) <= length else text[:length].rstrip() + " …"


def _answer(item: Any) -> Text:
    if not isinstance(item, dict):
        return Text(f"  {shortened(str(item))}")
    text = Text().append(f"  [{item.get('index', '')}] ", "dim")
    if item.get("error"):
        return text.append(f"failed: {item['error']}", "red")
    lead = "      "
    if isinstance(item.get("prompt"), str):
        text.append(shortened(" ".join(item["prompt"].split()), _PROMPT_LENGTH), "dim").append(f"\n{lead}")
    return text.append(shortened(str(item.get("output", ""))).replace("\n", f"\n{lead}"))
