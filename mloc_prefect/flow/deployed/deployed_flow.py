"""The flow of deployed specs: `run_spec(NAMES)`, which has a parameter for each of `NAMES`.

Prefect refuses parameters that a flow does not have, before the flow could look into the spec. So the names stand in
the entry point: `mloc_prefect.orchestrate.deployed.run_spec(topic,count)`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any

from prefect import Flow
from pydantic.json_schema import SkipJsonSchema

from mloc_prefect.flow.run_workflow import FLOW, run_given
from mloc_prefect.flow.spec_parameters import FILE, SPEC
from mloc_prefect.spec.declared_parameters import bad_name
from mloc_prefect.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MODULE = "mloc_prefect.orchestrate.deployed"
"""Where deployments find the flow."""

_HIDDEN: Any = SkipJsonSchema[str]  # left out of the form
_ATTRIBUTE = re.compile(r"run_spec\(([A-Za-z0-9_,]*)\)")


def attribute(names: Iterable[str]) -> str:
    """Return the name of the flow below `MODULE` that has these parameters."""
    return f"run_spec({','.join(sorted(names))})"


def flow_named(text: str) -> Flow[..., Any] | None:
    """Return the flow that `attribute` names, or None."""
    match = _ATTRIBUTE.fullmatch(text)
    names = tuple(name for name in match[1].split(",") if name) if match is not None else ()
    if match is None or any(bad_name(name) for name in names) or len(set(names)) < len(names):
        return None
    return _flow(names)


def flow_with(fields: Mapping[str, Any]) -> Flow[..., Any]:
    """Return the flow whose signature has these parameters.

    Args:
        fields: Their defaults by name, which may be fields of pydantic: Prefect's form shows what they say.
    """
    text = attribute(fields)

    async def run_spec(**given: Any) -> Any:
        spec, file = given.pop(SPEC), given.pop(FILE)
        values = {name: value for name, value in given.items() if value is not None}
        return await run_given(spec, values, file=file)

    kind = Parameter.KEYWORD_ONLY
    own = [
        Parameter(SPEC, kind, annotation=_HIDDEN),
        Parameter(FILE, kind, annotation=_HIDDEN, default="<deployed>"),
    ]
    asked = [Parameter(name, kind, annotation=Any, default=default) for name, default in fields.items()]
    function: Any = run_spec
    function.__signature__ = Signature([*own, *asked])
    function.__module__, function.__name__, function.__qualname__ = MODULE, text, text
    function.__doc__ = "Run the spec of this deployment; each of its tasks is a subflow of this run."
    # What the spec declares is checked by the run itself, which knows more than the signature.
    return Flow(fn=function, name=FLOW, version=__version__, validate_parameters=False, persist_result=False)


@lru_cache(maxsize=256)
def _flow(names: tuple[str, ...]) -> Flow[..., Any]:
    return flow_with(dict.fromkeys(names))
