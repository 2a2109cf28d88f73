"""`mloc models`: small models that can be installed without the Hugging Face hub."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from mloc_prefect.cli.display.console import console_on
from mloc_prefect.cli.display.units import size_text
from mloc_prefect.cli.error_boundary import examples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PREPARE_EXAMPLES = examples("mloc models prepare smollm2")
LIST_EXAMPLES = examples("mloc models list")


def prepare_model(name: Annotated[str, typer.Argument(metavar="NAME", help="A name of `mloc models list`.")]) -> None:
    """Install a small model and add its names to the mirrors file; a second call returns at once."""
    from mloc_prefect.artifacts.prepared_models import list_models, prepare
    from mloc_prefect.settings import get_settings

    settings = get_settings()
    with _progress() as tell:
        path = prepare(name, settings, tell)
    row = next(row for row in list_models(settings) if row["name"] == name)
    print(f"{name} is ready: {path}")
    print(f"in a spec: identifier: {row['identifiers'][0]}")


def list_models() -> None:
    """List the models that can be prepared, and their state."""
    from mloc_prefect.artifacts import prepared_models
    from mloc_prefect.settings import get_settings

    for row in prepared_models.list_models(get_settings()):
        state = f"ready, {size_text(row['bytes'])}, {row['path']}" if row["prepared"] else "not prepared"
        print(f"{row['name']}  {row['summary']}")
        print(f"  {state}")
        print(f"  names: {', '.join(row['identifiers'])}")


@contextmanager
def _progress() -> Iterator[Callable[[str, float | None], None]]:
    from mloc_prefect.cli.display.console import is_interactive

    if not is_interactive(sys.stderr):
        yield _plain_lines()
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console_on(sys.stderr), transient=True) as bars:
        bar = bars.add_task("preparing", total=None)

        def tell(text: str, fraction: float | None) -> None:
            bars.update(bar, description=text, total=None if fraction is None else 1.0, completed=fraction or 0.0)

        yield tell


def _plain_lines() -> Callable[[str, float | None], None]:
    last = ""

    def tell(text: str, _fraction: float | None) -> None:
        nonlocal last
        if text != last:
            print(text, file=sys.stderr)
        last = text

    return tell
