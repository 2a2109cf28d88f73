"""Paths of a task's files: in its directory or in `artifacts/`. [protocol 1.5, 1.6]."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mloc_prefect.artifacts.layout import MANIFEST, task_dir
from mloc_prefect.server.responses import ErrorResponse

if TYPE_CHECKING:
    from pathlib import Path

_LONGEST_NAME = 255  # bytes of one component, on all usual file systems
_PART_SUFFIX = ".part"

# A manifest commits a stage (decision 15), so an upload must never take its path.
_RESERVED = frozenset({MANIFEST, "logs", "artifacts", "attempts", ".sha256"})


def directory_of(root: Path, task_id: str) -> Path:
    """Return the directory of a task.

    Args:
        root: Absolute root of task results.
        task_id: The id as the client wrote it; surrounding whitespace is ignored.

    Raises:
        ErrorResponse: 400 for a blank id.
    """
    if not task_id.strip():
        raise ErrorResponse(400, "task_id is required")
    return task_dir(root, task_id.strip())


def check_name(name: str) -> str:
    """Return a file name if it is a single path component.

    Raises:
        ErrorResponse: 400 for any other text.
    """
    try:
        size = len(os.fsencode(name))
    except UnicodeEncodeError:
        raise ErrorResponse(400, "invalid filename") from None
    if name in {"", ".", ".."} or "/" in name or "\0" in name or size > _LONGEST_NAME:
        raise ErrorResponse(400, "invalid filename")
    return name


def place_of_upload(directory: Path, name: str) -> Path:
    """Return the target of an upload: the task's directory, or `artifacts/` if the name is reserved or exists there.

    Raises:
        ErrorResponse: 400 if the target is a directory, or `artifacts/` leads out of the task's directory.
    """
    artifact, flat = directory / "artifacts" / name, directory / name
    reserved = name in _RESERVED or name.endswith(_PART_SUFFIX) or flat.is_dir()
    target = artifact if reserved or artifact.exists() else flat
    if target.is_dir() or not _stays(target.parent, directory):
        raise ErrorResponse(400, "invalid filename")
    return target


def _stays(folder: Path, directory: Path) -> bool:
    """Return whether a folder is the directory of the task, or in it once links are followed."""
    home, real = os.path.realpath(directory), os.path.realpath(folder)
    return real == home or real.startswith(f"{home}{os.sep}")


def find_file(directory: Path, name: str) -> Path | None:
    """Return the regular file of that name, artifacts first; None if there is none inside the task's directory."""
    home = os.path.realpath(directory)
    for path in (directory / "artifacts" / name, directory / name):
        real = os.path.realpath(path)
        if os.path.isfile(real) and real.startswith(f"{home}{os.sep}"):  # noqa: PTH113 - follows a `str` path
            return path
    return None
