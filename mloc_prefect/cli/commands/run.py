"""The options of `mloc run`; `run_session` does the work."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from mloc_prefect.cli.commands.check import Overrides, Parameters, parameters
from mloc_prefect.cli.error_boundary import examples
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
    results_dir: Annotated[  # text: pathlib would make a path of a URL
        str | None, typer.Option(metavar="DIR", help="Root of results.")
    ] = None,
    ignore_resources: Annotated[
        bool, typer.Option("--ignore-resources", help="Run even if the spec requests more than this machine has.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end; progress goes to stderr.")
    ] = False,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN_ID", help="Resume an earlier run and reuse its finished work.")
    ] = None,
    param: Parameters = None,
    strict: Annotated[bool, typer.Option("--strict", help="Treat warnings as errors.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show Prefect's own log lines too.")] = False,
) -> None:
    """Run a spec on this machine as a Prefect flow and show its progress, answers and results.

    Uses the Prefect server of PREFECT_API_URL or of the active profile; without one it starts its own.
    Exit codes: 0 all stages are DONE, 2 invalid spec, 3 the plan cannot run here, 4 no server or process,
    5 a stage failed, 6 file error, 7 missing library, 130 Ctrl-C.
    """
    from mloc_prefect.cli.run_session import RunSettings, run_command

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
    """Return a run id in canonical form.

    Raises:
        UsageError: The text is not the id of a run.
    """
    if text is None:
        return None
    try:
        return str(UUID(text))
    except ValueError:
        hint = "the id is printed at the start of a run and is part of its URL in the web UI"
        raise UsageError(f"--resume {text!r} is not the id of a flow run", hint=hint) from None
