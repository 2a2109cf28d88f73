"""The command tree of `mloc`."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Annotated

import typer

from mloc_prefect.cli.client import task_commands as remote
from mloc_prefect.cli.commands import (
    check,
    deploy,
    doctor,
    env,
    gc,
    models,
    ps,
    run,
    schema,
    selftest,
    service_commands,
    templates,
    up,
)
from mloc_prefect.cli.error_boundary import examples, guarded
from mloc_prefect.process.proxies import bypass_proxies

app = typer.Typer(
    name="mloc",
    help="Check, plan and run MLOC task YAML as Prefect flows.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog=examples(
        "mloc models prepare smollm2", "mloc templates quickstart > task.yaml", "mloc run task.yaml", "mloc up"
    ),
)

_CHECK = "Specs"
_REMOTE = "Endpoint"
_SERVE = "Services"
_STATE = "This machine"


_ON_PREFECT = frozenset({"run", "deploy", "up", "serve", "bridge"})  # a worker tells it in its own log


def _version(wanted: bool) -> None:
    if wanted:
        from mloc_prefect.version import __version__

        print(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks, like MLOC_DEBUG=1.")] = False,
    _show: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Check, plan and run MLOC task YAML as Prefect flows."""
    bypass_proxies()
    if debug:
        os.environ["MLOC_DEBUG"] = "1"
    if context.invoked_subcommand is None:
        print(context.get_help())
    elif context.invoked_subcommand != "doctor":  # its report contains the warnings
        _warn_of_unknown_settings()
        if context.invoked_subcommand in _ON_PREFECT:
            _warn_of_untested_prefect()


def _warn_of_untested_prefect() -> None:
    from mloc_prefect.prefect_ext.tested_version import newer_than_tested

    if (text := newer_than_tested()) is not None:
        from mloc_prefect.cli.display.console import labelled, stderr

        stderr().print(labelled("warning", text, "bold yellow"), soft_wrap=True)


def _warn_of_unknown_settings() -> None:
    """Warn of keys in the config file that are not settings; costs nothing without a config file."""
    from mloc_prefect.errors import SettingsError
    from mloc_prefect.settings_sources import config_file

    exists = False
    with suppress(OSError, SettingsError):  # a command that needs settings reports this error
        exists = config_file().is_file()
    if not exists:
        return
    from mloc_prefect.cli.display.console import labelled, stderr
    from mloc_prefect.settings import settings_warnings

    for text in settings_warnings():
        stderr().print(labelled("warning", text, "bold yellow"))


def version() -> None:
    """Print the version."""
    from mloc_prefect.version import __version__

    print(__version__)


_MODELS = typer.Typer(help="Small models for first steps and tests.", no_args_is_help=True)
_MODELS.command(name="prepare", epilog=models.PREPARE_EXAMPLES)(guarded(models.prepare_model))
_MODELS.command(name="list", epilog=models.LIST_EXAMPLES)(guarded(models.list_models))

_ENV = typer.Typer(help="Python environments of executors, such as vLLM.", no_args_is_help=True)
_ENV.command(name="create", epilog=env.CREATE_EXAMPLES)(guarded(env.create_env))
_ENV.command(name="list", epilog=env.LIST_EXAMPLES)(guarded(env.list_env))

_WORKER = typer.Typer(help="Workers that run stages.", no_args_is_help=True)
_WORKER.command(name="start", epilog=service_commands.WORKER_EXAMPLES)(guarded(service_commands.worker_start))

app.command(epilog=check.VALIDATE_EXAMPLES, rich_help_panel=_CHECK)(guarded(check.validate))
app.command(epilog=check.PLAN_EXAMPLES, rich_help_panel=_CHECK)(guarded(check.plan))
app.command(name="run", epilog=run.EXAMPLES, rich_help_panel=_CHECK)(guarded(run.run_spec))
app.command(epilog=schema.EXAMPLES, rich_help_panel=_CHECK)(guarded(schema.schema))
app.command(name="templates", epilog=templates.EXAMPLES, rich_help_panel=_CHECK)(guarded(templates.templates))
app.command(epilog=remote.SUBMIT_EXAMPLES, rich_help_panel=_REMOTE)(guarded(remote.submit))
app.command(epilog=remote.STATUS_EXAMPLES, rich_help_panel=_REMOTE)(guarded(remote.status))
app.command(name="list", epilog=remote.LIST_EXAMPLES, rich_help_panel=_REMOTE)(guarded(remote.list_tasks))
app.command(epilog=remote.WATCH_EXAMPLES, rich_help_panel=_REMOTE)(guarded(remote.watch))
app.command(epilog=remote.LOGS_EXAMPLES, rich_help_panel=_REMOTE)(guarded(remote.logs))
app.command(epilog=remote.RESULTS_EXAMPLES, rich_help_panel=_REMOTE)(guarded(remote.results))
app.command(epilog=remote.CANCEL_EXAMPLES, rich_help_panel=_REMOTE)(guarded(remote.cancel))
app.command(epilog=remote.WORKERS_EXAMPLES, rich_help_panel=_REMOTE)(guarded(remote.workers))
app.command(name="deploy", epilog=deploy.EXAMPLES, rich_help_panel=_SERVE)(guarded(deploy.deploy))
app.command(epilog=up.EXAMPLES, rich_help_panel=_SERVE)(guarded(up.up))
app.command(epilog=service_commands.SERVE_EXAMPLES, rich_help_panel=_SERVE)(guarded(service_commands.serve))
app.command(epilog=service_commands.BRIDGE_EXAMPLES, rich_help_panel=_SERVE)(guarded(service_commands.bridge))
app.add_typer(_WORKER, name="worker", rich_help_panel=_SERVE)
app.command(epilog=selftest.EXAMPLES, rich_help_panel=_STATE)(guarded(selftest.selftest))
app.add_typer(_MODELS, name="models", rich_help_panel=_STATE)
app.add_typer(_ENV, name="env", rich_help_panel=_STATE)
app.command(epilog=doctor.EXAMPLES, rich_help_panel=_STATE)(guarded(doctor.doctor))
app.command(epilog=ps.PS_EXAMPLES, rich_help_panel=_STATE)(guarded(ps.ps))
app.command(epilog=ps.DOWN_EXAMPLES, rich_help_panel=_STATE)(guarded(ps.down))
app.command(name="gc", epilog=gc.EXAMPLES, rich_help_panel=_STATE)(guarded(gc.gc))
app.command(epilog=examples("mloc version"), rich_help_panel=_STATE)(guarded(version))
