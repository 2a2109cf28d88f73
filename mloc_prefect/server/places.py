"""Where the files of a task lie: in its directory or in `artifacts/`. [protocol 1.5, 1.6]."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mloc_prefect.artifacts.layout import MANIFEST, task_dir
from mloc_prefect.server.replies import Problem

if TYPE_CHECKING:
    from pathlib import Path

_LONGEST_NAME = 255  # bytes of one component, on all usual file systems
_PART_SUFFIX = ".part"

# A manifest commits a stage (architecture, decision 15), so that an upload of this name must not lie in its place.
_RESERVED = frozenset({MANIFEST, "logs", "artifacts", "attempts", ".sha256"})


def directory_of(root: Path, task_id: str) -> Path:
    """Return the directory of a task.

    Args:
        root: Absolute root of task results.
        task_id: As the client wrote it; blanks around it do not count.

    Raises:
        Problem: 400 for a blank id.
    """
    if not task_id.strip():
        raise Problem(400, "task_id is required")
    return task_dir(root, task_id.strip())


def check_name(name: str) -> str:
    """Return a file name that is one component of a path.

    Raises:
        Problem: 400 for any other text.
    """
    try:
        size = len(os.fsencode(name))
    except UnicodeEncodeError:
        raise Problem(400, "invalid filename") from None
    if name in {"", ".", ".."} or "/" in name or "\0" in name or size > _LONGEST_NAME:
        raise Problem(400, "invalid filename")
    return name


def place_of_upload(directory: Path, name: str) -> Path:
    """Return where an upload goes: into the task's directory, or to the artifact that it replaces.

    Raises:
        Problem: 400 when a directory has that name.
    """
    artifact, flat = directory / "artifacts" / name, directory / name
    taken = name in _RESERVED or name.endswith(_PART_SUFFIX) or flat.is_dir()
    target = artifact if taken or artifact.exists() else flat
    if target.is_dir():
        raise Problem(400, "invalid filename")
    return target


def find_file(directory: Path, name: str) -> Path | None:
    """Return the regular file of that name, artifacts first; None when there is none inside the task's directory."""
    home = os.path.realpath(directory)
    for path in (directory / "artifacts" / name, directory / name):
        real = os.path.realpath(path)
        if os.path.isfile(real) and real.startswith(f"{home}{os.sep}"):  # noqa: PTH113 - follows a `str` path
            return path
    return None
