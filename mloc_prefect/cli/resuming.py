"""Resuming an earlier run: whether it left results, and the command that resumes it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from mloc_prefect.artifacts.layout import task_dir
from mloc_prefect.errors import UsageError
from mloc_prefect.spec.overrides import shown_override
from mloc_prefect.spec.secrets import has_secret

if TYPE_CHECKING:
    from pathlib import Path

    from mloc_prefect.cli.run_session import RunSettings
    from mloc_prefect.flow.options import RunOptions
    from mloc_prefect.plan.workflow_plan import WorkflowPlan


def check_resumable(plan: WorkflowPlan, options: RunOptions) -> None:
    """Check that the run to resume, if any, left results for a stage of `plan`.

    Raises:
        UsageError: It left none, so everything would silently be computed again.
    """
    run_id = options.submission_id
    if run_id is not None and not leftovers(plan, options, run_id):
        raise UsageError(
            f"no results of run {run_id} for this spec in {options.root}",
            hint="check the id, the file and the --results-dir of that run, or leave out --resume to start over",
        )


def leftovers(plan: WorkflowPlan, options: RunOptions, run_id: str) -> list[Path]:
    """Return the task directories that a run left for the stages of `plan`, finished or not."""
    directories = (task_dir(options.root, task_id) for task_id in options.ids(plan, run_id).values())
    return [directory for directory in directories if directory.is_dir()]


def command_again(wanted: RunSettings, run_id: str | None) -> str:
    """Return a command, quoted for a shell, that runs the same spec with the same options; secrets are shown as `…`.

    Args:
        wanted: Options of the run.
        run_id: The run to resume, or None to start over.
    """
    words = ["mloc", "run", f"./{wanted.file}" if wanted.file.startswith("-") else wanted.file]
    for text in wanted.overrides:
        words += ["--set", shown_override(text)]
    for name, value in wanted.params.items():
        words += ["--param", f"{name}={'…' if has_secret({name: value}) else value}"]
    if wanted.results_dir is not None:
        words += ["--results-dir", str(wanted.results_dir)]
    flags = {"--ignore-resources": wanted.ignore_resources, "--strict": wanted.strict, "--verbose": wanted.verbose}
    words += [flag for flag, given in flags.items() if given]
    if run_id is not None:
        words += ["--resume", run_id]
    return shlex.join(words)
