"""`mloc validate` and `mloc plan`: specs read, judged and shown; nothing is started."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mloc_prefect.cli.boundary import EXIT_SPEC, examples
from mloc_prefect.errors import MlocError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.plan.model import WorkflowPlan
    from mloc_prefect.spec.diagnostics import Diagnostic

VALIDATE_EXAMPLES = examples(
    "mloc validate task.yaml", "mloc validate --strict --json specs/*.yaml", "cat task.yaml | mloc validate -"
)
PLAN_EXAMPLES = examples(
    "mloc plan task.yaml",
    "mloc plan task.yaml --mermaid",
    "mloc plan task.yaml --json --set spec.inference.max_tokens=32",
)

_READ_LIMIT = 64 << 20  # bytes; a file beyond it is no spec, and the size rule of the reader will say so

Files = Annotated[list[str], typer.Argument(metavar="FILE...", help="Spec files; `-` reads standard input.")]
Strict = Annotated[bool, typer.Option("--strict", help="Treat warnings as errors.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Change a value, e.g. spec.inference.max_tokens=32 or stages.NAME.spec.x=1."
    ),
]
Parameters = Annotated[
    list[str] | None,
    typer.Option("--param", metavar="NAME=VALUE", help="A value for ${param.NAME}; may be given again."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One input file after reading and planning.

    Attributes:
        file: Name as the user gave it.
        text: Its text, for excerpts; empty when it could not be read.
        plan: The plan, or None when the file is bad.
        errors: What makes it bad.
        warnings: What was noticed beside that.
    """

    file: str
    text: str
    plan: WorkflowPlan | None
    errors: tuple[Diagnostic, ...]
    warnings: tuple[Diagnostic, ...]

    @property
    def ok(self) -> bool:
        """Whether the file can be planned."""
        return not self.errors


def validate(
    files: Files,
    *,
    strict: Strict = False,
    param: Parameters = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a file.")] = False,
) -> None:
    """Check specs: all mistakes at once, each with its line, column and fix. Exit 2 if any file is bad."""
    names = tuple(parameters(param or []))
    checked = [check_file(file, strict=strict, params=names) for file in files]
    if as_json:
        _print_each(validation_row(one) for one in checked)
    else:
        _show_validation(checked)
    _leave(checked)


def plan(
    files: Files,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a file.")] = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print Mermaid flowcharts.")] = False,
    strict: Strict = False,
    overrides: Overrides = None,
    param: Parameters = None,
) -> None:
    """Show what would run: tasks, order, resources, executors. Good files are shown even when others are bad."""
    if as_json and mermaid:
        raise UsageError("--json and --mermaid are two forms of one answer", hint="leave one of them out")
    names = tuple(parameters(param or []))
    checked = [check_file(file, strict=strict, overrides=overrides or (), params=names) for file in files]
    if as_json:
        _print_each(plan_row(one) for one in checked)
    else:
        _show_plans(checked, mermaid=mermaid)
    _leave(checked)


def check_file(
    file: str, *, strict: bool = False, overrides: Sequence[str] = (), params: Sequence[str] = ()
) -> Checked:
    """Read and plan one file; a file that cannot be read is a finding like any other.

    Args:
        file: Its name, or `-` for standard input.
        strict: Treat warnings as errors.
        overrides: `PATH=VALUE` texts.
        params: Names that `${param.NAME}` may read.
    """
    from mloc_prefect.plan import check
    from mloc_prefect.spec.diagnostics import Diagnostic

    name = "<stdin>" if file == "-" else file
    try:
        data = _read(file)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        lost = Diagnostic(name, 1, 1, "error", "unreadable-file", f"cannot read the file: {reason}")
        return Checked(file=name, text="", plan=None, errors=(lost,), warnings=())
    found_plan, found = check(data, name, strict=strict, overrides=overrides, params=params)
    errors = tuple(d for d in found if strict or d.severity == "error")
    warnings = tuple(d for d in found if d not in errors)
    text = data.decode("utf-8-sig", errors="replace")
    return Checked(file=name, text=text, plan=None if errors else found_plan, errors=errors, warnings=warnings)


def parameters(pairs: list[str]) -> dict[str, str]:
    """Return `NAME=VALUE` texts as a mapping; the last one of a name wins.

    Raises:
        UsageError: A text has no `=` or no name.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.strip():
            raise UsageError(f"--param {pair!r} is not NAME=VALUE", hint="for example --param topic=tides")
        found[name.strip()] = value
    return found


def validation_row(checked: Checked) -> dict[str, Any]:
    """Return what `validate --json` prints for one file."""
    return {
        "file": checked.file,
        "errors": [d.to_dict() for d in checked.errors],
        "warnings": [d.to_dict() for d in checked.warnings],
    }


def plan_row(checked: Checked) -> dict[str, Any]:
    """Return what `plan --json` prints for one file: the plan, or its errors."""
    if checked.plan is None:
        return {"file": checked.file, "errors": [d.to_dict() for d in checked.errors]}
    return checked.plan.to_dict()


def show_findings(checked: Checked, *, on_stderr: bool = True) -> None:
    """Print all diagnostics of one file, in order of place."""
    from mloc_prefect.cli.console import stderr, stdout
    from mloc_prefect.cli.diagnostics import show_diagnostics

    ordered = sorted((*checked.errors, *checked.warnings), key=lambda d: (d.line, d.column))
    show_diagnostics(stderr() if on_stderr else stdout(), ordered, {checked.file: checked.text})


def _read(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read(_READ_LIMIT)
    with Path(file).open("rb") as stream:
        return stream.read(_READ_LIMIT)


def _print_each(rows: Any) -> None:
    from mloc_prefect.cli.console import print_json

    for row in rows:
        print_json(row)


def _show_validation(checked: Sequence[Checked]) -> None:
    from mloc_prefect.cli.console import labelled, stdout

    console = stdout()
    for one in checked:
        show_findings(one, on_stderr=False)
        if one.plan is not None:
            text = f"{one.file} ({one.plan.kind}, {_count(len(one.plan.stages), 'task')})"
            console.print(labelled("ok", text, "bold green"))
    bad = [one for one in checked if not one.ok]
    if bad:
        errors = _count(sum(len(one.errors) for one in bad), "error")
        console.print(labelled("invalid", f"{errors} in {len(bad)} of {_count(len(checked), 'file')}", "bold red"))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _show_plans(checked: Sequence[Checked], *, mermaid: bool) -> None:
    for one in checked:
        show_findings(one)
        if one.plan is not None:
            # the warnings stand above it already, with their source lines
            print(one.plan.to_mermaid() if mermaid else replace(_with_lacks(one.plan), warnings=()))


def _with_lacks(plan: WorkflowPlan) -> WorkflowPlan:
    """Return `plan` with notes of what its stages lack to run here; what runs elsewhere may have it."""
    from mloc_prefect.cli.console import labelled, stderr
    from mloc_prefect.orchestrate.preflight import lacks
    from mloc_prefect.settings import get_settings
    from mloc_prefect.worker.inventory import read_inventory

    try:
        settings = get_settings()
        found = lacks(plan.stages, settings, read_inventory(settings))
    except MlocError as error:  # a plan needs no machine, so it is shown without one
        stderr().print(labelled("note", f"whether it can run here is not known: {error.message}", "yellow"))
        return plan
    notes = {key: f"cannot run here: {one.text}{f' ({one.fix})' if one.fix else ''}" for key, one in found.items()}
    stages = (replace(s, notes=(*s.notes, notes[s.key])) if s.key in notes else s for s in plan.stages)
    return replace(plan, stages=tuple(stages))


def _leave(checked: Sequence[Checked]) -> None:
    if not all(one.ok for one in checked):
        raise typer.Exit(EXIT_SPEC)
