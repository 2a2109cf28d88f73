"""A spec ready to submit: checked, with `--set` applied and with its parameters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mloc_prefect.cli.commands.check import check_file, show_findings

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class SpecUpload:
    """A spec ready to submit.

    Attributes:
        text: Its text, with `--set` applied.
        parameters: Values of `${param.NAME}`.
    """

    text: str
    parameters: Mapping[str, str]


def checked_spec(
    file: str, overrides: tuple[str, ...], parameters: Mapping[str, str], *, strict: bool
) -> SpecUpload | None:
    """Return the spec of `mloc submit`, or None if it is invalid; its errors are printed.

    Args:
        file: Spec file, or `-` for standard input.
        overrides: `PATH=VALUE` texts.
        parameters: Values of `${param.NAME}`.
        strict: Treat warnings as errors.
    """
    checked = check_file(file, strict=strict, overrides=overrides, params=parameters)
    show_findings(checked)
    if checked.plan is None:
        return None
    return SpecUpload(_overridden(checked.text, file, overrides) if overrides else checked.text, parameters)


def _overridden(text: str, file: str, overrides: tuple[str, ...]) -> str:
    """Return the document with the overrides applied, as JSON, which is valid YAML."""
    from mloc_prefect.spec.loader import load_spec

    return json.dumps(load_spec(text, file, overrides=overrides).document, indent=2)
