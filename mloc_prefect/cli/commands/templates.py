"""`mloc templates`: the template specs of the package."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Annotated

import typer

from mloc_prefect.cli.error_boundary import examples
from mloc_prefect.errors import UsageError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

EXAMPLES = examples("mloc templates", "mloc templates quickstart > task.yaml")


def templates(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Print this template; without a name, list all.")
    ] = None,
) -> None:
    """List the template specs, or print one."""
    found = available()
    if name is None:
        _list(found)
        return
    wanted = name.removesuffix(".yaml")
    if wanted not in found:
        from mloc_prefect.diagnostics.diagnostic import did_you_mean

        near = did_you_mean(wanted, found)
        raise UsageError(f"there is no template {name!r}", hint=near or f"one of: {', '.join(found)}")
    print(found[wanted].read_text(encoding="utf-8"), end="")


def available() -> dict[str, Traversable]:
    """Return the templates of the installed package by name."""
    folder = files("mloc_prefect") / "templates"
    specs = (entry for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return {entry.name.removesuffix(".yaml"): entry for entry in sorted(specs, key=lambda e: e.name)}


def summary(text: str) -> str:
    """Return the first sentence of the comment at the start of a spec, or an empty text."""
    words: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        comment = line.lstrip("# ").strip()
        if not comment and words:
            break
        words.append(comment)
    sentence, stop, _ = " ".join(filter(None, words)).partition(". ")
    return sentence + stop.strip()


def _list(found: dict[str, Traversable]) -> None:
    from rich.text import Text

    from mloc_prefect.cli.display.console import stdout

    width = max(map(len, found), default=0)
    console = stdout()
    for name, entry in found.items():
        console.print(
            Text.assemble((f"{name:<{width}}", "bold cyan"), f"  {summary(entry.read_text(encoding='utf-8'))}")
        )
