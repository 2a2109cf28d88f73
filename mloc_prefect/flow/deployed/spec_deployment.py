"""The deployment of a plan: its entry point, parameters, form and version."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.deployments.runner import RunnerDeployment
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.callables import parameter_schema
from pydantic import Field

from mloc_prefect.diagnostics.masking import has_secret
from mloc_prefect.errors import MlocError, UsageError
from mloc_prefect.flow import spec_parameters
from mloc_prefect.flow.deployed.deployed_flow import MODULE, flow_with
from mloc_prefect.spec.declared_parameters import SpecParameter, bad_name, inferred, value_faults

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect import Flow

    from mloc_prefect.plan.workflow_plan import WorkflowPlan

_BANNED = frozenset('/%&><"')


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecDeployment:
    """What a deployment of a spec consists of, apart from its schedule and pool.

    Attributes:
        name: Its name, unless another is chosen: that of the spec.
        parameters: Spec, file name and given values.
        flow: The flow; its signature says what the form asks for.
        version: Twelve digits of a hash of all this: it changes when the deployment does.
        description: For people.
        missing: Parameters that each run must give.
    """

    name: str
    parameters: Mapping[str, Any]
    flow: Flow[..., Any]
    version: str
    description: str
    missing: tuple[str, ...]

    @property
    def entrypoint(self) -> str:
        """The entry point, which has the names of the parameters."""
        return f"{MODULE}.{self.flow.fn.__name__}"

    @property
    def schema(self) -> dict[str, Any]:
        """JSON Schema of the form."""
        return parameter_schema(self.flow).model_dump_for_openapi()

    def configured(self, name: str | None = None, **options: Any) -> RunnerDeployment:
        """Return the deployment for Prefect's API or for `prefect.serve`.

        Args:
            name: Its name; default: that of the spec.
            options: As `Flow.to_deployment` takes them, without `parameters`.

        Raises:
            UsageError: A scheduled run would have no value for a parameter, or a name cannot be used.
        """
        chosen = name or self.name
        if bad := next((c for c in chosen if c in _BANNED), None):
            raise UsageError(f"a deployment cannot be named {chosen!r}: it has {bad!r}", hint="give --name")
        scheduled = any(options.get(key) for key in ("cron", "interval", "rrule", "schedule", "schedules"))
        if scheduled and self.missing:
            raise UsageError(
                f"{self.name}: parameter '{self.missing[0]}' has no value, so scheduled runs would fail",
                hint=f"give it: --param {self.missing[0]}=VALUE, or a default in params",
            )
        options.pop("entrypoint_type", None)
        own: dict[str, Any] = {"version": self.version, "description": self.description, "tags": ["mloc"]}
        return RunnerDeployment.from_flow(
            self.flow,
            chosen,
            entrypoint_type=EntrypointType.MODULE_PATH,
            parameters=dict(self.parameters),
            **own | {key: value for key, value in options.items() if value is not None},
        )


def deployment_of(plan: WorkflowPlan, values: Mapping[str, Any], results_root: Path) -> SpecDeployment:
    """Return the deployment of a plan.

    Args:
        plan: The plan of the spec, as it was written.
        values: Values of parameters; texts, as `--param` gives them, or JSON values.
        results_root: Where a spec that is large or holds a secret is kept; runs read it there.

    Raises:
        MlocError: The text of the spec is not known, or a value or a name cannot be used.
        ArtifactError: The copy of the spec cannot be written.
    """
    if plan.source_text is None:
        raise MlocError(
            f"{plan.file} cannot be deployed: values were set beside its text", hint="write them into the spec"
        )
    parameters, given = _parameters(plan, values)
    shown = {name: value for name, value in given.items() if value is not None}
    secret = {name: str(value) for name, value in shown.items() if has_secret({name: "x"})}
    packed = shown | spec_parameters.pack_values(secret, results_root)
    spec = spec_parameters.pack(plan.source_text, results_root)
    stored: dict[str, Any] = {spec_parameters.SPEC: spec, spec_parameters.FILE: Path(plan.file).name, **packed}
    flow = flow_with({one.name: _field(one, position, shown) for position, one in enumerate(parameters)})
    form = parameter_schema(flow).model_dump_for_openapi()
    missing = tuple(one.name for one in parameters if one.default is None and one.name not in shown)
    count = f"{len(plan.stages)} task{'' if len(plan.stages) == 1 else 's'}"
    digest = hashlib.sha256(json.dumps([flow.fn.__name__, stored, form], sort_keys=True).encode())
    return SpecDeployment(
        name=plan.name,
        parameters=stored,
        flow=flow,
        version=digest.hexdigest()[:12],
        description=f"{Path(plan.file).name}: {count} ({plan.kind})",
        missing=missing,
    )


def _parameters(plan: WorkflowPlan, values: Mapping[str, Any]) -> tuple[list[SpecParameter], dict[str, Any]]:
    """Return the parameters, those declared or else those read, and the given values in their types."""
    if plan.parameters:
        for name, (fault, _) in value_faults(plan.parameters, values, complete=False).items():
            raise UsageError(f"parameter '{name}' {fault}", hint=f"{plan.file} says in params what it takes")
        known = {one.name: one for one in plan.parameters}
        return list(plan.parameters), {name: known[name].read(value) for name, value in values.items()}
    found, given = [], {}
    for name in dict.fromkeys((*plan.read_parameters, *values)):
        if (why := bad_name(name)) is not None:
            raise UsageError(f"'{name}' cannot be a parameter of a deployment: {why}", hint="rename it in the spec")
        value = values.get(name)
        one, given[name] = inferred(name, value if value is None or isinstance(value, str) else json.dumps(value))
        found.append(one)
    return found, given


def _field(one: SpecParameter, position: int, given: Mapping[str, Any]) -> Any:
    """Return the field of the form for a parameter; a given value is its default there."""
    schema: dict[str, Any] = one.schema(position)
    value = given.get(one.name, one.default)
    schema.pop("default", None)
    shown = ... if value is None else None if one.is_secret else value
    return Field(default=shown, description=schema.pop("description", None), json_schema_extra=schema)
