"""`mloc selftest`: try on this machine what the product does, and print what was measured."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mloc_prefect.cli.error_boundary import examples
from mloc_prefect.errors import UsageError

if TYPE_CHECKING:
    from mloc_prefect.cli.selftest.check_runner import CheckResult
    from mloc_prefect.cli.selftest.trial import Trial
    from mloc_prefect.settings import MlocSettings

EXAMPLES = examples("mloc selftest --quick", "mloc selftest --model /models/Qwen3-0.6B --json > selftest.json")

_SIGNS = {"ok": ("✓", "green"), "failed": ("✗", "bold red"), "not here": ("-", "yellow")}


def selftest(
    *,
    model: Annotated[
        str | None, typer.Option(metavar="PATH", help="Folder of a causal language model; default: a prepared model.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only the first, short checks.")] = False,
    minutes: Annotated[float, typer.Option(min=0.1, help="Time for all checks together.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object; progress goes to stderr.")] = False,
) -> None:
    """Run inference and training on this machine and print what was measured.

    Needs a local model (`mloc models prepare smollm2`) and no hub. What needs a GPU, or a library that is not
    installed, is `not here`. Exit code 1 if a check failed.
    """
    from mloc_prefect.cli.display.console import print_json
    from mloc_prefect.cli.selftest.check_runner import end_all, run_checks
    from mloc_prefect.settings import get_settings

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the same as Ctrl-C: the executors are ended
    settings = get_settings()
    path = _model(settings, model)
    results: list[CheckResult] = []
    with tempfile.TemporaryDirectory(prefix="mloc-", ignore_cleanup_errors=True) as folder:
        trial = _trial(settings, Path(folder), path, minutes=minutes, quick=quick)
        try:
            for result in run_checks(trial, on_start=lambda name: print(f"{name} …", file=sys.stderr, flush=True)):
                results.append(result)
                if not as_json:
                    _show(result)
        finally:
            left = end_all(trial)
        if left is not None:
            results.append(left)
            if not as_json:
                _show(left)
    failed = [result.name for result in results if result.outcome == "failed"]
    if as_json:
        print_json({"ok": not failed, "model": path, "checks": [asdict(result) for result in results]})
    else:
        counts = {outcome: sum(r.outcome == outcome for r in results) for outcome in _SIGNS}
        print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    if failed:
        raise typer.Exit(1)


def _trial(settings: MlocSettings, home: Path, model: str, *, minutes: float, quick: bool) -> Trial:
    from mloc_prefect.cli.selftest.trial import Trial
    from mloc_prefect.execution.environments.catalog import ENVIRONMENTS, marker_of
    from mloc_prefect.hardware.inventory import read_inventory

    envs = settings.home / "envs"
    if envs.is_dir():
        (home / "envs").symlink_to(envs.resolve(), target_is_directory=True)
    built = {name for name in ENVIRONMENTS if name in settings.python or marker_of(settings.home, name)}
    return Trial(
        home=home,
        model=model,
        gpus=len(read_inventory(settings).gpus),
        quick=quick,
        deadline=time.monotonic() + 60 * minutes,
        environments=frozenset(built),
    )


def _model(settings: MlocSettings, wanted: str | None) -> str:
    """Return the folder of the model.

    Raises:
        UsageError: There is no model at the path that was given, or none is prepared.
    """
    from mloc_prefect.artifacts.prepared_models import list_models

    if wanted is not None:
        folder = Path(wanted).expanduser()
        if not (folder / "config.json").is_file():
            raise UsageError(f"--model {wanted}: there is no config.json in it", hint="name the folder of a model")
        return str(folder.resolve())
    for row in list_models(settings):
        if row["prepared"]:
            return str(row["path"])
    raise UsageError("no model is prepared", hint="run 'mloc models prepare smollm2', or give --model PATH")


def _show(result: CheckResult) -> None:
    from rich.text import Text

    from mloc_prefect.cli.display.console import stdout

    sign, style = _SIGNS[result.outcome]
    figures = ", ".join(f"{name} {value}" for name, value in result.figures.items())
    text = "; ".join(part for part in (result.why, figures) if part)
    line = Text.assemble((sign, style), f" {result.name:<40} {result.seconds:6.1f} s  {text}")
    stdout().print(line, highlight=False, soft_wrap=True)
