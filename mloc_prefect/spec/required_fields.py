"""Checks the fields that the base document must have; the messages are MLOC's own [protocol 1.3]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.diagnostics.diagnostic import did_you_mean
from mloc_prefect.spec.diagnostic_report import bad_character, shown

if TYPE_CHECKING:
    from mloc_prefect.diagnostics.positions import Positions
    from mloc_prefect.spec.diagnostic_report import DiagnosticReport

_HARDWARE = ("spec", "resources", "hardware")
_REQUIRED: tuple[tuple[tuple[str, ...], str], ...] = (
    (("apiVersion",), "mloc/v1"),
    (("kind",), "InferenceTask"),
    (("metadata", "name"), "my-task"),
    (("spec", "taskType"), "inference"),
    (("spec", "resources", "replicas"), "1"),
    ((*_HARDWARE, "cpu"), '"4"'),
    ((*_HARDWARE, "memory"), '"8Gi"'),
)
_ENVELOPE = ("apiVersion", "kind", "metadata", "spec")
_OWN = "params"  # ours, see `declared_parameters`
_METADATA = ("name", "owner", "project", "annotations", "labels")


def check_required(document: Any, positions: Positions | None, report: DiagnosticReport) -> None:
    """Report every missing required field; MLOC itself names only the first.

    Only the presence of a key counts, null is accepted; stages and nodes are not checked.
    """
    if not isinstance(document, dict) or positions is None:
        _report_not_a_mapping(document, positions, report)
        return
    for path, example in _REQUIRED:
        _check_field(document, positions, path, example, report)
    _check_gpu(document, positions, report)
    _check_name(document, positions, report)
    _check_envelope(document, positions, report)


def _report_not_a_mapping(document: Any, positions: Positions | None, report: DiagnosticReport) -> None:
    position = (positions.line, positions.column) if positions else (1, 1)
    found = "nothing" if document is None else shown(document)
    fix = "a spec is a mapping that starts with 'apiVersion: mloc/v1'"
    message = "Missing required field: apiVersion"
    report.error("missing-field", message, position, found=found, suggestion=fix, missing="apiVersion")


def _check_field(
    document: dict[str, Any], positions: Positions, path: tuple[str, ...], example: str, report: DiagnosticReport
) -> None:
    current: Any = document
    for depth, name in enumerate(path):
        if isinstance(current, dict) and name in current:
            current = current[name]
            continue
        parent = path[:depth]
        position = positions.find(parent)
        near = did_you_mean(name, [k for k in current if k not in path]) if isinstance(current, dict) else None
        fix = f"rename {near.removeprefix('did you mean ').rstrip('?')} to '{name}'" if near else None
        report.error(
            "missing-field",
            f"Missing required field: {'.'.join(path)}",
            (position.key_line, position.key_column),
            path=parent,
            found=None if isinstance(current, dict) else shown(current),
            suggestion=fix or f"add '{'.'.join(path[depth:])}', e.g. {path[-1]}: {example}",
            missing=".".join(path),
        )
        return


def _check_gpu(document: dict[str, Any], positions: Positions, report: DiagnosticReport) -> None:
    """Report a GPU block without count or type; null counts as missing, an empty block or 0 means no GPU."""
    path = (*_HARDWARE, "gpu")
    gpu: Any = document
    for name in path:
        gpu = gpu.get(name) if isinstance(gpu, dict) else None
    if not gpu:
        return
    if not isinstance(gpu, dict):
        _report_not_a_gpu_block(gpu, path, positions, report)
        return
    for name, example in (("count", "1"), ("type", "any")):
        if gpu.get(name) is None:
            field = (*path, name) if name in gpu else path
            position = positions.find(field)
            at = (position.line, position.column) if name in gpu else (position.key_line, position.key_column)
            message = f"Missing spec.resources.hardware.gpu.{name}"
            report.error("missing-gpu-field", message, at, path=field, suggestion=f"add {name}: {example}")


def _report_not_a_gpu_block(gpu: Any, path: tuple[str, ...], positions: Positions, report: DiagnosticReport) -> None:
    """Report MLOC's message for `gpu: 1`; the validation of types reports that it is not a mapping."""
    position = positions.find(path)
    count = gpu if isinstance(gpu, int) and not isinstance(gpu, bool) else 1
    report.error(
        "missing-gpu-field",
        "Missing spec.resources.hardware.gpu.count",
        (position.line, position.column),
        path=path,
        found=shown(gpu),
        suggestion=f"write gpu: {{count: {count}, type: any}}",
    )


def _check_name(document: dict[str, Any], positions: Positions, report: DiagnosticReport) -> None:
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or "name" not in metadata:
        return
    name = metadata["name"]
    position = positions.find(("metadata", "name"))
    details: dict[str, Any] = {"path": ("metadata", "name"), "found": shown(name)}
    if isinstance(name, (dict, list)):
        fix = "quote text that starts with '{' or '['"
        report.error("invalid-type", "name must be text", (position.line, position.column), suggestion=fix, **details)
    elif (bad := bad_character(name)) is not None:
        code, what, fix = bad
        message = f"metadata.name has {what}"
        report.error(code, message, (position.line, position.column), suggestion=fix, **details)
    elif name is None or not str(name).strip():
        message = "metadata.name is empty, so the run has no name"
        report.warning(
            "empty-name", message, (position.line, position.column), suggestion="give the task a name", **details
        )


def _check_envelope(document: dict[str, Any], positions: Positions, report: DiagnosticReport) -> None:
    for key in document:
        if report.is_full("warning"):
            return
        if key not in {*_ENVELOPE, _OWN}:
            position = positions.children[key]
            near = did_you_mean(key, (*_ENVELOPE, _OWN)) or f"a spec has only {', '.join(_ENVELOPE)}"
            report.warning(
                "unknown-field",
                f"Unknown field '{key}'",
                (position.key_line, position.key_column),
                path=(key,),
                suggestion=near,
            )
    metadata = document.get("metadata")
    for key in metadata if isinstance(metadata, dict) else ():
        if report.is_full("warning"):
            return
        # Other metadata belongs to the user; only probable typing errors are reported.
        typo = None if key in _METADATA else did_you_mean(key, _METADATA)
        if typo:
            position = positions.find(("metadata", key))
            at = (position.key_line, position.key_column)
            report.warning("unknown-field", f"Unknown field '{key}'", at, path=("metadata", key), suggestion=typo)
