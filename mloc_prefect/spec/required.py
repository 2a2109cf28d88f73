"""Fields that the base document must have, with MLOC's own wording [protocol 1.3]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.spec.diagnostics import did_you_mean
from mloc_prefect.spec.report import shown

if TYPE_CHECKING:
    from mloc_prefect.spec.positions import Positions
    from mloc_prefect.spec.report import Report

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
_METADATA = ("name", "owner", "project", "annotations", "labels")


def check_required(document: Any, places: Positions | None, report: Report) -> None:
    """Report every required field that is missing; MLOC itself names only the first.

    Only presence of the key counts, null passes; stages and nodes are not looked at.
    """
    if not isinstance(document, dict) or places is None:
        _not_a_mapping(document, places, report)
        return
    for path, example in _REQUIRED:
        _check(document, places, path, example, report)
    _check_gpu(document, places, report)
    _check_name(document, places, report)
    _check_envelope(document, places, report)


def _not_a_mapping(document: Any, places: Positions | None, report: Report) -> None:
    place = (places.line, places.column) if places else (1, 1)
    found = "nothing" if document is None else shown(document)
    fix = "a spec is a mapping that starts with 'apiVersion: mloc/v1'"
    report.error("missing-field", "Missing required field: apiVersion", place, found=found, suggestion=fix)


def _check(document: dict[str, Any], places: Positions, path: tuple[str, ...], example: str, report: Report) -> None:
    here: Any = document
    for depth, name in enumerate(path):
        if isinstance(here, dict) and name in here:
            here = here[name]
            continue
        parent = path[:depth]
        place = places.find(parent)
        near = did_you_mean(name, [k for k in here if k not in path]) if isinstance(here, dict) else None
        fix = f"rename {near.removeprefix('did you mean ').rstrip('?')} to '{name}'" if near else None
        report.error(
            "missing-field",
            f"Missing required field: {'.'.join(path)}",
            (place.key_line, place.key_column),
            path=parent,
            found=None if isinstance(here, dict) else shown(here),
            suggestion=fix or f"add '{'.'.join(path[depth:])}', e.g. {path[-1]}: {example}",
        )
        return


def _check_gpu(document: dict[str, Any], places: Positions, report: Report) -> None:
    """Report a GPU block without count or type; null counts as missing, an empty block or 0 is none."""
    path = (*_HARDWARE, "gpu")
    gpu: Any = document
    for name in path:
        gpu = gpu.get(name) if isinstance(gpu, dict) else None
    if not gpu:
        return
    if not isinstance(gpu, dict):
        _not_a_gpu_block(gpu, path, places, report)
        return
    for name, example in (("count", "1"), ("type", "any")):
        if gpu.get(name) is None:
            where = (*path, name) if name in gpu else path
            place = places.find(where)
            at = (place.line, place.column) if name in gpu else (place.key_line, place.key_column)
            message = f"Missing spec.resources.hardware.gpu.{name}"
            report.error("missing-gpu-field", message, at, path=where, suggestion=f"add {name}: {example}")


def _not_a_gpu_block(gpu: Any, path: tuple[str, ...], places: Positions, report: Report) -> None:
    """Report what MLOC says of `gpu: 1`; that it is no mapping is reported where types are judged."""
    place = places.find(path)
    count = gpu if isinstance(gpu, int) and not isinstance(gpu, bool) else 1
    report.error(
        "missing-gpu-field",
        "Missing spec.resources.hardware.gpu.count",
        (place.line, place.column),
        path=path,
        found=shown(gpu),
        suggestion=f"write gpu: {{count: {count}, type: any}}",
    )


def _check_name(document: dict[str, Any], places: Positions, report: Report) -> None:
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or "name" not in metadata:
        return
    name = metadata["name"]
    place = places.find(("metadata", "name"))
    details: dict[str, Any] = {"path": ("metadata", "name"), "found": shown(name)}
    if isinstance(name, (dict, list)):
        fix = "quote a text that starts with '{' or '['"
        report.error("invalid-type", "name must be text", (place.line, place.column), suggestion=fix, **details)
    elif name is None or not str(name).strip():
        message = "metadata.name is empty, so the run has no name of its own"
        report.warning("empty-name", message, (place.line, place.column), suggestion="give the task a name", **details)


def _check_envelope(document: dict[str, Any], places: Positions, report: Report) -> None:
    for key in document:
        if key not in _ENVELOPE:
            place = places.children[key]
            near = did_you_mean(key, _ENVELOPE) or f"a spec has only {', '.join(_ENVELOPE)}"
            report.warning(
                "unknown-field",
                f"Unknown field '{key}'",
                (place.key_line, place.key_column),
                path=(key,),
                suggestion=near,
            )
    metadata = document.get("metadata")
    for key in metadata if isinstance(metadata, dict) else ():
        # Other metadata is the user's own; only what looks like a slip is worth a line.
        slip = None if key in _METADATA else did_you_mean(key, _METADATA)
        if slip:
            place = places.find(("metadata", key))
            at = (place.key_line, place.key_column)
            report.warning("unknown-field", f"Unknown field '{key}'", at, path=("metadata", key), suggestion=slip)
