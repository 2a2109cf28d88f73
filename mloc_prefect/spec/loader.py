"""Reads YAML text into a `Workflow` and collects all diagnostics of the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_prefect.diagnostics.diagnostic import errors, warnings
from mloc_prefect.errors import MlocError, SpecError
from mloc_prefect.spec.construct import construct
from mloc_prefect.spec.declared_parameters import read_parameters
from mloc_prefect.spec.diagnostic_report import DiagnosticReport
from mloc_prefect.spec.expand import MAX_TASKS, base_name, expand
from mloc_prefect.spec.overrides import apply_overrides, report_shadowed
from mloc_prefect.spec.required_fields import check_required
from mloc_prefect.spec.secrets import mask_diagnostics
from mloc_prefect.spec.syntax import MAX_SPEC_BYTES, compose, decode
from mloc_prefect.spec.validate import validate_tasks
from mloc_prefect.spec.workflow import SpecSource, Workflow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.diagnostics.diagnostic import Diagnostic


def read_spec(
    text: str | bytes,
    file: str = "<text>",
    *,
    overrides: Sequence[str] = (),
    max_bytes: int = MAX_SPEC_BYTES,
    max_tasks: int = MAX_TASKS,
) -> tuple[Workflow | None, tuple[Diagnostic, ...]]:
    """Read as much of a spec as possible; bad input never raises.

    Args:
        text: The spec; bytes must be UTF-8.
        file: File name in diagnostics.
        overrides: `path=value` texts, applied to the document before it is expanded.
        max_bytes: Largest accepted size.
        max_tasks: Tasks that it may have.

    Returns:
        The workflow (None when the document cannot be expanded) and all diagnostics, sorted by position.
    """
    report = DiagnosticReport(file)
    workflow = _read(text, report, overrides, max_bytes, max_tasks)
    found = report.diagnostics()
    if not found:
        return workflow, found
    found = mask_diagnostics(found, text if isinstance(text, str) else text.decode("utf-8", "replace"))
    return workflow and replace(workflow, warnings=warnings(found)), found


def load_spec(
    text: str | bytes,
    file: str = "<text>",
    *,
    strict: bool = False,
    overrides: Sequence[str] = (),
    max_bytes: int = MAX_SPEC_BYTES,
) -> Workflow:
    """Return the workflow of a valid spec; see `read_spec`.

    Args:
        text: The spec.
        file: File name in diagnostics.
        strict: Treat warnings as errors.
        overrides: `path=value` texts.
        max_bytes: Largest accepted size.

    Raises:
        SpecError: The spec is invalid; the exception carries all errors of the file.
    """
    workflow, found = read_spec(text, file, overrides=overrides, max_bytes=max_bytes)
    if strict:
        found = tuple(replace(d, severity="error") for d in found)
    invalid = errors(found)
    if invalid or workflow is None:
        raise SpecError(invalid)
    return replace(workflow, warnings=warnings(found))


def load_workflow(
    path_or_text: str | Path, *, strict: bool = False, overrides: Sequence[str] = (), max_bytes: int = MAX_SPEC_BYTES
) -> Workflow:
    """Return the workflow of a spec file, or of a spec given as text.

    Args:
        path_or_text: A path, or the text itself; it is read as a path when it is a single line without a mapping.
        strict: Treat warnings as errors.
        overrides: `path=value` texts.
        max_bytes: Largest accepted size.

    Raises:
        SpecError: The spec is invalid.
        MlocError: The file cannot be read.
    """
    if isinstance(path_or_text, str) and not _is_path(path_or_text):
        return load_spec(path_or_text, strict=strict, overrides=overrides, max_bytes=max_bytes)
    path = Path(path_or_text)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MlocError(f"cannot read {path}: {error.strerror or error}", hint="give the path of a spec file") from None
    return load_spec(data, str(path), strict=strict, overrides=overrides, max_bytes=max_bytes)


def _is_path(text: str) -> bool:
    return bool(text.strip()) and "\n" not in text and ": " not in text and not text.lstrip().startswith(("{", "["))


def _read(
    text: str | bytes, report: DiagnosticReport, overrides: Sequence[str], max_bytes: int, max_tasks: int
) -> Workflow | None:
    decoded = decode(text, report, max_bytes)
    if decoded is None:
        return None
    node = compose(decoded, report)
    if node is None:
        if not report.diagnostics():
            check_required(None, None, report)
        return None
    built = construct(node, report)
    if built is None:
        return None
    document, positions = built
    if overrides and isinstance(document, dict):
        apply_overrides(overrides, document, positions, report)
    check_required(document, positions, report)
    if not isinstance(document, dict) or not isinstance(document.get("spec"), dict):
        return None
    parameters = read_parameters(document, positions, report)
    kind, drafts = expand(document, positions, report, max_tasks)
    if overrides:
        report_shadowed(overrides, drafts, positions, report)
    nodes = validate_tasks(drafts, positions, report)
    return Workflow(
        name=base_name(document),
        kind=kind,
        source=SpecSource(report.file, decoded, overridden=bool(overrides)),
        document=document,
        positions=positions,
        nodes=nodes,
        parameters=parameters,
    )
