"""`mloc deploy`: Prefect deployments of specs, each with the parameters of its spec."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mloc_prefect.cli.commands.check import Parameters, Strict, check_file, parameters, show_findings
from mloc_prefect.cli.error_boundary import EXIT_SPEC, examples
from mloc_prefect.errors import DispatchError, UsageError, reason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.actions import DeploymentUpdate
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.deployments.runner import RunnerDeployment

    from mloc_prefect.flow.deployed.spec_deployment import SpecDeployment
    from mloc_prefect.settings import MlocSettings

EXAMPLES = examples(
    "mloc deploy capitals.yaml",
    "mloc deploy capitals.yaml --name capitals-daily --cron '0 7 * * *' --param topic=tides",
    "mloc deploy --all specs/ --interval 30m --tag nightly",
)

_INTERVAL = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([smhd]?)\s*")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployOptions:
    """What is asked of the deployments; None: as it is, or as Prefect has it.

    Attributes:
        schedule: `cron` or `interval` for `prefect`.
        pool: Work pool.
        limit: Most runs at once.
        tags: Tags, in addition to `mloc`.
    """

    schedule: Mapping[str, Any] = field(default_factory=dict)
    pool: str | None = None
    limit: int | None = None
    tags: tuple[str, ...] = ()

    @property
    def given(self) -> bool:
        """Whether anything is asked that the version of a deployment does not show."""
        return bool(self.schedule or self.pool or self.limit is not None or self.tags)


def deploy(
    file: Annotated[str | None, typer.Argument(metavar="[FILE]", help="Spec file; `-` reads standard input.")] = None,
    *,
    directory: Annotated[
        str | None, typer.Option("--all", metavar="DIR", help="Deploy every *.yaml and *.yml file of DIR.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the deployment; default: metadata.name.")
    ] = None,
    cron: Annotated[str | None, typer.Option("--cron", metavar="CRON", help="Run at these times (UTC).")] = None,
    interval: Annotated[
        str | None, typer.Option("--interval", metavar="TIME", help="Run every 90, 30s, 15m, 2h or 1d.")
    ] = None,
    param: Parameters = None,
    pool: Annotated[
        str | None, typer.Option("--pool", metavar="POOL", help="Work pool; created if it is missing.")
    ] = None,
    concurrency_limit: Annotated[
        int | None, typer.Option("--concurrency-limit", metavar="N", min=1, help="Most runs of it at once.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", metavar="TAG", help="A tag; can be repeated.")] = None,
    strict: Strict = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per deployment.")] = False,
) -> None:
    """Make a Prefect deployment of a spec, whose `${param.NAME}` are its parameters; exit code 2 for a bad spec.

    The text of the spec is stored in the deployment. Deploying it again changes the deployment if the spec has changed.
    """
    if (file is None) == (directory is None):
        raise UsageError("give one spec file, or --all DIR", hint="mloc deploy capitals.yaml")
    if directory is not None and (name is not None or param):
        raise UsageError(
            "--all takes no --name and no --param", hint="deploy the file alone, or set defaults in params"
        )
    files = [file] if file is not None else _specs_in(directory or ".")
    options = DeployOptions(
        schedule=_schedule(cron, interval), pool=pool, limit=concurrency_limit, tags=tuple(dict.fromkeys(tag or ()))
    )
    from mloc_prefect.cli.prefect_api import quiet_prefect

    quiet_prefect()
    found = [_checked(one, parameters(param or []), strict=strict) for one in files]
    if any(one is None for one in found):
        raise typer.Exit(EXIT_SPEC)
    wanted = [one for one in found if one is not None]
    names = [name or one.name for one in wanted]
    if twice := next((one for one in names if names.count(one) > 1), None):
        both = ", ".join(files[index] for index, one in enumerate(names) if one == twice)
        raise UsageError(f"two specs are named '{twice}': {both}", hint="change metadata.name of one")
    rows = asyncio.run(_deploy(wanted, names, options))
    _show(rows, as_json=as_json)


def _specs_in(directory: str) -> list[str]:
    try:
        found = sorted(str(p) for p in Path(directory).iterdir() if p.suffix in _SUFFIXES and p.is_file())
    except OSError as error:
        raise UsageError(f"cannot read {directory}: {error.strerror}", hint="--all takes a directory") from None
    if not found:
        raise UsageError(f"{directory} has no *.yaml and no *.yml file", hint="--all takes a directory of specs")
    return found


def _schedule(cron: str | None, interval: str | None) -> dict[str, Any]:
    """Return the schedule as `prefect` takes it.

    Raises:
        UsageError: It is none.
    """
    if cron is not None and interval is not None:
        raise UsageError("--cron and --interval exclude each other", hint="leave one of them out")
    if interval is not None:
        match = _INTERVAL.fullmatch(interval)
        seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
        if not seconds:
            raise UsageError(f"--interval {interval!r} is no time", hint="write 90, 30s, 15m, 2h or 1d")
        return {"interval": seconds}
    if cron is None:
        return {}
    from prefect.client.schemas.schedules import CronSchedule

    try:
        CronSchedule(cron=cron)
    except ValueError:
        raise UsageError(f"--cron {cron!r} is no schedule", hint="for example '0 7 * * *', each day at 7") from None
    return {"cron": cron}


def _checked(file: str, values: Mapping[str, str], *, strict: bool) -> SpecDeployment | None:
    """Return the deployment of a spec, or None if it is not valid; its diagnostics are printed."""
    from mloc_prefect.flow.deployed.spec_deployment import deployment_of
    from mloc_prefect.settings import get_settings

    checked = check_file(file, strict=strict, params=_AnyNames(values))
    show_findings(checked)
    if checked.plan is None:
        return None
    return deployment_of(checked.plan, values, get_settings().results_root)


class _AnyNames:
    """Names of parameters: the given ones when listed, but any other is one, too: the deployment will ask for it."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self._given = given

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Any:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


async def _deploy(
    wanted: Sequence[SpecDeployment], names: Sequence[str], options: DeployOptions
) -> list[dict[str, Any]]:
    from prefect.client.orchestration import get_client

    from mloc_prefect.cli.prefect_api import server_in_use, using_api
    from mloc_prefect.settings import get_settings

    settings = get_settings()
    url, auth = await server_in_use(settings.home)
    with using_api(url, auth):
        async with get_client() as client:
            try:
                return [
                    await _deploy_one(client, one, name, options, settings)
                    for one, name in zip(wanted, names, strict=True)
                ]
            except _prefect_errors() as error:
                raise DispatchError(f"Prefect server at {url}: {reason(error)}") from None


async def _deploy_one(
    client: PrefectClient, one: SpecDeployment, name: str, options: DeployOptions, settings: MlocSettings
) -> dict[str, Any]:
    """Create or change a deployment; return the object that `--json` prints for it."""
    from prefect.exceptions import ObjectNotFound
    from prefect.utilities.urls import url_for

    from mloc_prefect.cluster.deployments import RUN_WORKFLOW, ensure_pool
    from mloc_prefect.prefect_ext.run_facts import COORDINATOR_QUEUE

    full = f"{RUN_WORKFLOW.flow}/{name}"
    if name == RUN_WORKFLOW.name:
        raise UsageError(f"'{name}' is the deployment that runs any spec", hint="give --name")
    try:
        found: DeploymentResponse | None = await client.read_deployment_by_name(full)
    except ObjectNotFound:
        found = None
    status = "created" if found is None else "updated"
    if found is not None and found.version == one.version and not options.given:
        status, made = "unchanged", found.id
    else:
        pool = options.pool or (found.work_pool_name if found is not None else None) or settings.work_pool
        await ensure_pool(client, pool)
        more: dict[str, Any] = {"concurrency_limit": options.limit, "tags": ["mloc", *options.tags]}
        wanted = one.configured(
            name, work_pool_name=pool, work_queue_name=COORDINATOR_QUEUE, **options.schedule, **more
        )
        if found is None:
            made = await wanted.aapply()
        else:
            made = found.id
            await client.update_deployment(made, _change(one, wanted, options))
    return {
        "name": full,
        "id": str(made),
        "version": one.version,
        "status": status,
        "parameters": list(one.schema.get("properties", {})),
        "url": url_for("deployment", obj_id=made) or None,
    }


def _change(one: SpecDeployment, wanted: RunnerDeployment, options: DeployOptions) -> DeploymentUpdate:
    """Return the fields that an existing deployment gets; what is not asked for stays as users have set it."""
    from prefect.client.schemas.actions import DeploymentUpdate

    fields: dict[str, Any] = {
        "version": one.version,
        "parameters": dict(one.parameters),
        "parameter_openapi_schema": one.schema,
        "entrypoint": one.entrypoint,
        "description": one.description,
    }
    if options.schedule:
        fields["schedules"] = [s.model_dump(exclude_unset=True) for s in wanted.schedules or []]
    if options.pool:
        fields |= {"work_pool_name": wanted.work_pool_name, "work_queue_name": wanted.work_queue_name}
    if options.limit is not None:
        fields["concurrency_limit"] = options.limit
    if options.tags:
        fields["tags"] = wanted.tags
    return DeploymentUpdate(**fields)


def _prefect_errors() -> tuple[type[Exception], ...]:
    import httpx
    from prefect.deployments.runner import DeploymentApplyError
    from prefect.exceptions import PrefectException

    return httpx.HTTPError, PrefectException, DeploymentApplyError


def _show(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    from mloc_prefect.cli.display.console import labelled, print_json, stdout

    for row in rows:
        if as_json:
            print_json(row)
            continue
        page = f"  {row['url']}" if row["url"] else ""
        stdout().print(labelled(str(row["status"]), f"{row['name']} (version {row['version']}){page}", "bold green"))
    if not as_json and len(rows) == 1:
        given = "".join(f" -p {name}=..." for name in rows[0]["parameters"])
        stdout().print(f"run it: prefect deployment run {rows[0]['name']}{given}", soft_wrap=True, markup=False)
