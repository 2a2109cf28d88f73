"""`mloc validate` and `mloc plan`: check specs and show their plans; nothing is started."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mloc_prefect.cli.display.console import say
from mloc_prefect.cli.error_boundary import EXIT_SPEC, examples
from mloc_prefect.errors import MlocError, UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from mloc_prefect.diagnostics.diagnostic import Diagnostic
    from mloc_prefect.plan.workflow_plan import WorkflowPlan

VALIDATE_EXAMPLES = examples(
    "mloc validate task.yaml", "mloc validate --strict --json specs/*.yaml", "cat task.yaml | mloc validate -"
)
PLAN_EXAMPLES = examples(
    "mloc plan task.yaml",
    "mloc plan task.yaml --mermaid",
    "mloc plan task.yaml --json --set spec.inference.max_tokens=32",
)

_READ_LIMIT = 64 << 20  # bytes; a larger file is refused by the size limit of the parser anyway

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
    typer.Option("--param", metavar="NAME=VALUE", help="A value for ${param.NAME}; can be repeated."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedFile:
    """One input file after reading and planning.

    Attributes:
        file: Name as the user gave it.
        text: Its text, for excerpts; empty if it could not be read.
        plan: The plan, or None if the file has errors.
        errors: Its errors; with `--strict`, warnings too.
        warnings: Its warnings.
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per file.")] = False,
) -> None:
    """Report all errors of specs at once, each with line, column and fix. Exit code 2 if a file has errors."""
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per file.")] = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print Mermaid flowcharts.")] = False,
    strict: Strict = False,
    overrides: Overrides = None,
    param: Parameters = None,
) -> None:
    """Show what would run: tasks, order, resources, executors. Valid files are shown even if others have errors."""
    if as_json and mermaid:
        raise UsageError("--json and --mermaid exclude each other", hint="leave one of them out")
    names = tuple(parameters(param or []))
    checked = [check_file(file, strict=strict, overrides=overrides or (), params=names) for file in files]
    if as_json:
        _print_each(plan_row(one) for one in checked)
    else:
        _show_plans(checked, mermaid=mermaid)
    _leave(checked)


def check_file(
    file: str, *, strict: bool = False, overrides: Sequence[str] = (), params: Collection[str] = ()
) -> CheckedFile:
    """Read and plan one file; an unreadable file is reported as a diagnostic.

    Args:
        file: Its name, or `-` for standard input.
        strict: Treat warnings as errors.
        overrides: `PATH=VALUE` texts.
        params: Names that `${param.NAME}` may read, or a mapping of the values of a run.
    """
    from mloc_prefect.diagnostics.diagnostic import Diagnostic
    from mloc_prefect.plan import check

    name = "<stdin>" if file == "-" else file
    try:
        data = _read(file)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        unreadable = Diagnostic(name, 1, 1, "error", "unreadable-file", f"cannot read the file: {reason}")
        return CheckedFile(file=name, text="", plan=None, errors=(unreadable,), warnings=())
    found_plan, found = check(data, name, strict=strict, overrides=overrides, params=params)
    errors = tuple(d for d in found if strict or d.severity == "error")
    warnings = tuple(d for d in found if d not in errors)
    text = data.decode("utf-8-sig", errors="replace")
    return CheckedFile(file=name, text=text, plan=None if errors else found_plan, errors=errors, warnings=warnings)


def parameters(pairs: list[str]) -> dict[str, str]:
    """Return `NAME=VALUE` texts as a mapping; the last value of a name wins.

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


def validation_row(checked: CheckedFile) -> dict[str, Any]:
    """Return the object that `validate --json` prints for one file."""
    return {
        "file": checked.file,
        "errors": [d.to_dict() for d in checked.errors],
        "warnings": [d.to_dict() for d in checked.warnings],
    }


def plan_row(checked: CheckedFile) -> dict[str, Any]:
    """Return the object that `plan --json` prints for one file: the plan, or its errors."""
    if checked.plan is None:
        return {"file": checked.file, "errors": [d.to_dict() for d in checked.errors]}
    return checked.plan.to_dict()


def show_findings(checked: CheckedFile, *, on_stderr: bool = True) -> None:
    """Print all diagnostics of one file, in order of position."""
    from mloc_prefect.cli.display.console import stderr, stdout
    from mloc_prefect.cli.display.diagnostic_text import show_diagnostics

    ordered = sorted((*checked.errors, *checked.warnings), key=lambda d: (d.line, d.column))
    show_diagnostics(stderr() if on_stderr else stdout(), ordered, {checked.file: checked.text})


def _read(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read(_READ_LIMIT)
    with Path(file).open("rb") as stream:
        return stream.read(_READ_LIMIT)


def _print_each(rows: Any) -> None:
    from mloc_prefect.cli.display.console import print_json

    for row in rows:
        print_json(row)


def _show_validation(checked: Sequence[CheckedFile]) -> None:
    from mloc_prefect.cli.display.console import labelled, stdout

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


def _show_plans(checked: Sequence[CheckedFile], *, mermaid: bool) -> None:
    for one in checked:
        show_findings(one)
        if one.plan is not None:
            # Its warnings have been printed above, with their source lines.
            say(one.plan.to_mermaid() if mermaid else replace(_with_missing_needs(one.plan), warnings=()))


def _with_missing_needs(plan: WorkflowPlan) -> WorkflowPlan:
    """Return `plan` with notes of what this machine lacks to run its stages; other workers may have it."""
    from mloc_prefect.cli.display.console import labelled, stderr
    from mloc_prefect.flow.engine_choice import choose_engines
    from mloc_prefect.flow.preflight import missing_needs
    from mloc_prefect.hardware.inventory import read_inventory
    from mloc_prefect.settings import get_settings

    try:
        settings = get_settings()
        found = missing_needs(choose_engines(plan.stages, settings, read_inventory(settings)), settings)
    except MlocError as error:  # the plan is valid on any machine, so it is shown without the notes
        stderr().print(labelled("note", f"could not check whether it can run here: {error.message}", "yellow"))
        return plan
    notes = {key: f"cannot run here: {one.text}{f' ({one.fix})' if one.fix else ''}" for key, one in found.items()}
    stages = (replace(s, notes=(*s.notes, notes[s.key])) if s.key in notes else s for s in plan.stages)
    return replace(plan, stages=tuple(stages))


def _leave(checked: Sequence[CheckedFile]) -> None:
    if not all(one.ok for one in checked):
        raise typer.Exit(EXIT_SPEC)
