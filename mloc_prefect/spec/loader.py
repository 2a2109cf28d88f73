"""YAML text -> `Workflow`, with all diagnostics of the file at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_prefect.errors import MlocError, SpecError
from mloc_prefect.spec.construct import construct
from mloc_prefect.spec.diagnostics import errors, warnings
from mloc_prefect.spec.expand import base_name, expand
from mloc_prefect.spec.judge import judge
from mloc_prefect.spec.model import Source, Workflow
from mloc_prefect.spec.overrides import apply_overrides, report_shadowed
from mloc_prefect.spec.report import Report
from mloc_prefect.spec.required import check_required
from mloc_prefect.spec.syntax import MAX_SPEC_BYTES, compose, decode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.spec.diagnostics import Diagnostic


def read(
    text: str | bytes, file: str = "<text>", *, overrides: Sequence[str] = (), max_bytes: int = MAX_SPEC_BYTES
) -> tuple[Workflow | None, tuple[Diagnostic, ...]]:
    """Read a spec as far as it can be read; bad input never raises.

    Args:
        text: The spec; bytes must be UTF-8.
        file: Name that diagnostics show.
        overrides: `path=value` texts, laid over the document before it is expanded.
        max_bytes: Largest accepted size.

    Returns:
        The workflow (None when the document cannot be expanded) and everything found, in order of place.
    """
    report = Report(file)
    workflow = _read(text, report, overrides, max_bytes)
    return workflow, report.diagnostics()


def load(
    text: str | bytes,
    file: str = "<text>",
    *,
    strict: bool = False,
    overrides: Sequence[str] = (),
    max_bytes: int = MAX_SPEC_BYTES,
) -> Workflow:
    """Return the workflow of a valid spec; see `read`.

    Args:
        text: The spec.
        file: Name that diagnostics show.
        strict: Treat warnings as errors.
        overrides: `path=value` texts.
        max_bytes: Largest accepted size.

    Raises:
        SpecError: With every error of the file.
    """
    workflow, found = read(text, file, overrides=overrides, max_bytes=max_bytes)
    if strict:
        found = tuple(replace(d, severity="error") for d in found)
    bad = errors(found)
    if bad or workflow is None:
        raise SpecError(bad)
    return replace(workflow, warnings=warnings(found))


def load_workflow(
    path_or_text: str | Path, *, strict: bool = False, overrides: Sequence[str] = (), max_bytes: int = MAX_SPEC_BYTES
) -> Workflow:
    """Return the workflow of a spec file, or of a spec given as text.

    Args:
        path_or_text: A path; or a text, which is taken as a path when it is one line and names no mapping.
        strict: Treat warnings as errors.
        overrides: `path=value` texts.
        max_bytes: Largest accepted size.

    Raises:
        SpecError: The spec is not valid.
        MlocError: The file cannot be read.
    """
    if isinstance(path_or_text, str) and not _is_path(path_or_text):
        return load(path_or_text, strict=strict, overrides=overrides, max_bytes=max_bytes)
    path = Path(path_or_text)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MlocError(f"cannot read {path}: {error.strerror or error}", hint="give the path of a spec file") from None
    return load(data, str(path), strict=strict, overrides=overrides, max_bytes=max_bytes)


def _is_path(text: str) -> bool:
    return bool(text.strip()) and "\n" not in text and ": " not in text and not text.lstrip().startswith(("{", "["))


def _read(text: str | bytes, report: Report, overrides: Sequence[str], max_bytes: int) -> Workflow | None:
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
    document, places = built
    if overrides and isinstance(document, dict):
        apply_overrides(overrides, document, places, report)
    check_required(document, places, report)
    if not isinstance(document, dict) or not isinstance(document.get("spec"), dict):
        return None
    kind, drafts = expand(document, places, report)
    if overrides:
        report_shadowed(overrides, drafts, places, report)
    nodes = judge(drafts, places, report)
    found = report.diagnostics()
    return Workflow(
        name=base_name(document),
        kind=kind,
        source=Source(report.file, decoded),
        document=document,
        positions=places,
        nodes=nodes,
        warnings=warnings(found) if found else (),
    )
