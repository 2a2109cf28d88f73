"""A spec ready to submit: checked, with `--set` applied and with its parameters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.cli.commands.check import check_file, show_findings

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class SpecUpload:
    """The spec and options of `mloc submit`.

    Attributes:
        file: Spec file, or `-` for standard input.
        overrides: `PATH=VALUE` texts.
        parameters: Values of `${param.NAME}`.
        strict: Treat warnings as errors.
    """

    file: str
    overrides: tuple[str, ...]
    parameters: Mapping[str, str]
    strict: bool


def prepare(order: SpecUpload) -> dict[str, Any] | None:
    """Return the arguments of the request, or None if the spec is invalid; its errors are printed."""
    checked = check_file(order.file, strict=order.strict, overrides=order.overrides, params=tuple(order.parameters))
    show_findings(checked)
    if checked.plan is None:
        return None
    text = _overridden(checked.text, order) if order.overrides else checked.text
    if order.parameters:
        return {"json": {"yaml": text, "parameters": dict(order.parameters)}}
    return {"content": text.encode(), "headers": {"Content-Type": "text/yaml"}}


def _overridden(text: str, order: SpecUpload) -> str:
    """Return the document with the overrides applied, as JSON, which is valid YAML."""
    from mloc_prefect.spec.loader import load_spec

    return json.dumps(load_spec(text, order.file, overrides=order.overrides).document, indent=2)
