"""`mloc run`: its options; the work is in `session`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from mloc_prefect.cli.boundary import examples
from mloc_prefect.cli.check import Overrides, Parameters, parameters
from mloc_prefect.errors import UsageError

EXAMPLES = examples(
    "mloc run task.yaml",
    "mloc run task.yaml --set spec.inference.max_tokens=32 --results-dir out",
    "mloc run task.yaml --param topic=tides    # for ${param.topic} in the spec",
    "mloc run task.yaml --resume 2f6c0b3e-6d0e-4d0e-9f3b-0a4f6d1c9b11",
)


def run_spec(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Spec file; `-` reads standard input.")],
    *,
    overrides: Overrides = None,
    results_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Root of results.")] = None,
    ignore_resources: Annotated[
        bool, typer.Option("--ignore-resources", help="Run here even if the spec asks for more than this machine has.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object, last; progress goes to stderr.")
    ] = False,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN_ID", help="Go on with an earlier run: what it finished is reused.")
    ] = None,
    param: Parameters = None,
    strict: Annotated[bool, typer.Option("--strict", help="Treat warnings as errors.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show Prefect's own log lines too.")] = False,
) -> None:
    """Run a spec here as a Prefect flow and show its progress, answers and results.

    Uses the Prefect server of PREFECT_API_URL or of the active profile; without one it starts its own.
    Exit: 0 all stages DONE, 2 spec, 3 plan, 4 no place to run, 5 a stage failed, 6 files, 7 missing extra, 130 Ctrl-C.
    """
    from mloc_prefect.cli.session import RunSettings, run_command

    wanted = RunSettings(
        file=file,
        overrides=tuple(overrides or ()),
        results_dir=results_dir,
        ignore_resources=ignore_resources,
        as_json=as_json,
        resume=run_id(resume),
        params=parameters(param or []),
        strict=strict,
        verbose=verbose,
    )
    raise typer.Exit(run_command(wanted))


def run_id(text: str | None) -> str | None:
    """Return a run id in its usual spelling.

    Raises:
        UsageError: Not the id of a run.
    """
    if text is None:
        return None
    try:
        return str(UUID(text))
    except ValueError:
        hint = "it is shown at the start of a run and in its address in the web pages"
        raise UsageError(f"--resume {text!r} is not the id of a flow run", hint=hint) from None
