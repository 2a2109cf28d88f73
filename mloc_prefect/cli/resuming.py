"""Going on with an earlier run: whether there is anything of it, and the command that does it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from mloc_prefect.artifacts.layout import task_dir
from mloc_prefect.errors import UsageError
from mloc_prefect.spec.overrides import shown_override
from mloc_prefect.spec.secrets import has_secret

if TYPE_CHECKING:
    from pathlib import Path

    from mloc_prefect.cli.session import RunSettings
    from mloc_prefect.orchestrate.options import RunOptions
    from mloc_prefect.plan.model import WorkflowPlan


def check_resumable(plan: WorkflowPlan, options: RunOptions) -> None:
    """Return when the run `options.submission_id` left anything for a stage of `plan`, or is not asked for.

    Raises:
        UsageError: It did not; everything would silently be computed anew.
    """
    run_id = options.submission_id
    if run_id is not None and not leftovers(plan, options, run_id):
        raise UsageError(
            f"no results of run {run_id} for this spec in {options.root}",
            hint="check the id, the file, and the --results-dir of that run; without --resume it runs from the start",
        )


def leftovers(plan: WorkflowPlan, options: RunOptions, run_id: str) -> list[Path]:
    """Return the directories that a run left for the stages of `plan`, finished or not."""
    places = (task_dir(options.root, task_id) for task_id in options.ids(plan, run_id).values())
    return [place for place in places if place.is_dir()]


def command_again(wanted: RunSettings, run_id: str | None) -> str:
    """Return a command, quoted for a shell, that runs the same spec in the same way; with `…` for values of secrets.

    Args:
        wanted: What the user asked for.
        run_id: The run to go on with; None: from the start.
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
