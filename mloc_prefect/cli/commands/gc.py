"""`mloc gc`: remove old results, attempts and archives; without `--yes`, only list them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mloc_prefect.cli.display.console import say
from mloc_prefect.cli.display.units import age_text, parse_age, parse_size, size_text
from mloc_prefect.cli.error_boundary import examples

if TYPE_CHECKING:
    from mloc_prefect.artifacts.garbage import GcReport

EXAMPLES = examples("mloc gc", "mloc gc --older-than 7d --yes", "mloc gc --max-size 50GiB")


def gc(
    *,
    older_than: Annotated[str, typer.Option(metavar="AGE", help="Remove what has not changed for this time.")] = "30d",
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Then remove the oldest until results take at most this.")
    ] = None,
    results_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Results root; default: the setting.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove the files; without it nothing is changed.")] = False,
) -> None:
    """Remove old results, finished attempts and archives. Running tasks and other files are kept."""
    from mloc_prefect.artifacts.garbage import collect
    from mloc_prefect.settings import get_settings

    age = parse_age(older_than)
    size = parse_size(max_size) if max_size is not None else None
    root = get_settings(results_dir=results_dir).results_root
    report = collect(root, max_age=age, max_bytes=size, dry_run=not yes)
    for line in report_lines(report):
        say(line)


def report_lines(report: GcReport) -> list[str]:
    """Return the lines of `mloc gc`."""
    lines = [
        f"{item.kind:<8} {size_text(item.size):>10}  {age_text(item.age):>6}  {item.path}  ({item.reason})"
        for item in report.items
    ]
    total = f"{size_text(report.freed)} of {size_text(report.total)}"
    if not report.items:
        return [f"nothing to remove ({size_text(report.total)} of results)"]
    if report.removed:
        return [*lines, f"removed {total}"]
    return [*lines, f"would remove {total}; run again with --yes to do it"]
