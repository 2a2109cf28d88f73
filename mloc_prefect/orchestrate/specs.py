"""Specs as flow parameters: by value up to 16 KiB, above that by content hash (architecture, decision 12)."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from mloc_prefect.artifacts import atomic
from mloc_prefect.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

BY_VALUE = 16 * 1024  # bytes; Prefect caps parameters at 512 KiB and ships them with every poll
_REFERENCE = re.compile(r"sha256:([0-9a-f]{64})")


def pack(text: str, results_root: Path) -> str:
    """Return `text`, or `sha256:<hex>` of the copy kept below `<results root>/.specs` when it is large.

    Raises:
        ArtifactError: The copy cannot be written.
    """
    data = text.encode("utf-8")
    if len(data) <= BY_VALUE:
        return text
    name = hashlib.sha256(data).hexdigest()
    path = _place(results_root, name)
    if not path.is_file():
        atomic.write_bytes(path, data)
    return f"sha256:{name}"


def unpack(spec: str, results_root: Path) -> str:
    """Return the text that `pack` was given.

    Raises:
        ArtifactError: The copy is not there, or is not what its name says.
    """
    match = _REFERENCE.fullmatch(spec.strip())
    if match is None:
        return spec
    path = _place(results_root, match[1])
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


def _place(results_root: Path, name: str) -> Path:
    return results_root / ".specs" / f"{name}.yaml"
