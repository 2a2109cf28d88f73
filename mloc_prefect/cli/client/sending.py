"""A spec made ready to be sent: checked here, changed by `--set`, with its parameters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.cli.check import check_file, show_findings

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Order:
    """What the user wants to run.

    Attributes:
        file: Spec file, or `-`.
        overrides: `PATH=VALUE` texts.
        parameters: Values of `${param.NAME}`.
        strict: Treat warnings as errors.
    """

    file: str
    overrides: tuple[str, ...]
    parameters: Mapping[str, str]
    strict: bool


def prepare(order: Order) -> dict[str, Any] | None:
    """Return the arguments of the request, or None when the spec is bad; its faults are shown then."""
    checked = check_file(order.file, strict=order.strict, overrides=order.overrides, params=tuple(order.parameters))
    show_findings(checked)
    if checked.plan is None:
        return None
    text = _overridden(checked.text, order) if order.overrides else checked.text
    if order.parameters:
        return {"json": {"yaml": text, "parameters": dict(order.parameters)}}
    return {"content": text.encode(), "headers": {"Content-Type": "text/yaml"}}


def _overridden(text: str, order: Order) -> str:
    """Return the document with the overrides in it, as JSON, which is YAML, too."""
    from mloc_prefect.spec import load

    return json.dumps(load(text, order.file, overrides=order.overrides).document, indent=2)
