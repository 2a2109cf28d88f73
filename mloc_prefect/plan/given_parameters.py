"""Checks the values that a run gives to `${param.NAME}` against what the spec declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mloc_prefect.diagnostics.diagnostic import did_you_mean
from mloc_prefect.spec.declared_parameters import BLOCK, value_faults
from mloc_prefect.spec.diagnostic_report import shown
from mloc_prefect.spec.secrets import MASK

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from mloc_prefect.diagnostics.diagnostic import Diagnostic
    from mloc_prefect.spec.workflow import Workflow


def has_block(workflow: Workflow) -> bool:
    """Return whether the spec says which parameters it has: then there are no others."""
    block: Any = workflow.document.get(BLOCK)
    return isinstance(block, Mapping) and bool(block)


def parameter_faults(workflow: Workflow, given: Collection[str]) -> list[Diagnostic]:
    """Return what is wrong with the parameters of a run.

    Args:
        workflow: The spec.
        given: Names of the parameters, or a mapping of their values; only the values of a mapping are checked.
    """
    return list(_faults(workflow, given)) if has_block(workflow) else []


def _faults(workflow: Workflow, given: Collection[str]) -> Iterator[Diagnostic]:
    names = [str(name) for name in workflow.document[BLOCK]]
    for name in given:
        if name not in names:
            yield workflow.diagnostic(
                (BLOCK,),
                severity="error",
                code="unknown-parameter",
                message=f"There is no parameter '{name}'",
                at_key=True,
                suggestion=did_you_mean(name, names) or f"the parameters are {', '.join(names)}",
            )
    if not isinstance(given, Mapping):
        return
    secret = {one.name for one in workflow.parameters if one.is_secret}
    for name, (fault, value) in value_faults(workflow.parameters, given).items():
        code = "missing-parameter" if value is None else "bad-parameter"
        fix = f'give it: --param {name}=VALUE (over HTTP: "parameters")' if value is None else None
        yield workflow.diagnostic(
            (BLOCK, name),
            severity="error",
            code=code,
            message=f"Parameter '{name}' {fault}",
            at_key=True,
            found=None if value is None else MASK if name in secret else shown(value),
            suggestion=fix,
        )
