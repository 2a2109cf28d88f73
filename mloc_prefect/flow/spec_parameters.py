"""Passes specs as parameters of flow runs: up to 16 KiB by value, else by content hash (decision 12).

What holds a secret is passed by content hash, too: Prefect shows parameters to everyone who may see its runs.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts import atomic
from mloc_prefect.errors import ArtifactError
from mloc_prefect.spec.overrides import shown_override
from mloc_prefect.spec.secrets import has_secret, mask_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

BY_VALUE = 16 * 1024  # bytes; Prefect limits parameters to 512 KiB and sends them with every poll
SPEC, FILE = "mloc_spec", "mloc_file"
"""Parameters of a deployed spec that hold its text and its name; no parameter of a spec begins with `mloc_`."""

_VALUE = "mloc-secret:"
"""Prefix of a reference to a value, which could be any text."""
_REFERENCE = re.compile(r"sha256:([0-9a-f]{64})")


def pack(text: str, results_root: Path) -> str:
    """Return a spec, or `sha256:<hex>` of the copy kept below `<results root>/.specs` if it is large or holds a secret.

    Raises:
        ArtifactError: The copy cannot be written.
    """
    if len(text.encode("utf-8")) <= BY_VALUE and mask_text(text) == text:
        return text
    return _kept(text, results_root)


def pack_values(values: Mapping[str, str], results_root: Path) -> dict[str, str]:
    """Return values of `${param.NAME}`; those that hold a secret as references.

    Raises:
        ArtifactError: A copy cannot be written.
    """
    return {
        name: f"{_VALUE}{_kept(value, results_root)}"
        if has_secret({name: value}) or value.startswith(_VALUE)
        else value
        for name, value in values.items()
    }


def pack_overrides(overrides: Sequence[str], results_root: Path) -> list[str]:
    """Return `path=value` texts; those that set a secret as references, which have no `=`.

    Raises:
        ArtifactError: A copy cannot be written.
    """
    return [_kept(text, results_root) if shown_override(text) != text else text for text in overrides]


def unpack(spec: str, results_root: Path) -> str:
    """Return the text that `pack` was given.

    Raises:
        ArtifactError: The copy is missing, or its content does not match its name.
    """
    match = _REFERENCE.fullmatch(spec.strip())
    if match is None:
        return spec
    path = _copy_path(results_root, match[1])
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"the spec {match[0][:19]}... is not at {path}: {error.strerror}",
            hint="submitter and worker must share one results root (MLOC_RESULTS_DIR)",
        ) from error
    if hashlib.sha256(data).hexdigest() != match[1]:
        raise ArtifactError(f"{path} is damaged: its content does not match its name", hint="submit the spec again")
    return data.decode("utf-8")


def unpack_values(values: Mapping[str, Any], results_root: Path) -> dict[str, Any]:
    """Return the values that `pack_values` was given.

    Raises:
        ArtifactError: A copy is missing.
    """
    return {
        name: unpack(value.removeprefix(_VALUE), results_root)
        if isinstance(value, str) and value.startswith(_VALUE)
        else value
        for name, value in values.items()
    }


def unpack_overrides(overrides: Sequence[str], results_root: Path) -> tuple[str, ...]:
    """Return the texts that `pack_overrides` was given.

    Raises:
        ArtifactError: A copy is missing.
    """
    return tuple(unpack(text, results_root) for text in overrides)


def submitted(parameters: Mapping[str, Any]) -> tuple[str | None, str, dict[str, Any]]:
    """Return what a workflow run was given: its spec, the name of that, and the values of `${param.NAME}`.

    Args:
        parameters: The parameters of a run of `run-workflow`, or of a deployed spec.
    """
    deployed = SPEC in parameters
    spec, file = parameters.get(SPEC if deployed else "spec"), parameters.get(FILE if deployed else "file")
    own = {SPEC, FILE}
    values = {k: v for k, v in parameters.items() if k not in own} if deployed else parameters.get("parameters") or {}
    given = {str(name): value for name, value in values.items() if value is not None}
    return spec if isinstance(spec, str) else None, str(file or "<submitted>"), given


def is_reference_to(spec: str, text: str) -> bool:
    """Return whether a parameter is a text, or a reference to it."""
    return spec == text or spec.strip() == f"sha256:{hashlib.sha256(text.encode('utf-8')).hexdigest()}"


def _kept(text: str, results_root: Path) -> str:
    data = text.encode("utf-8")
    name = hashlib.sha256(data).hexdigest()
    path = _copy_path(results_root, name)
    if not path.is_file():
        atomic.write_bytes(path, data)
    return f"sha256:{name}"


def _copy_path(results_root: Path, name: str) -> Path:
    return results_root / ".specs" / f"{name}.yaml"
