"""Finds what trainings left on this file system: folders, their archives, and the digests of the archives."""

from __future__ import annotations

from pathlib import Path

from mloc_prefect.artifacts.layout import task_dir
from mloc_prefect.artifacts.manifest import read_manifest
from mloc_prefect.errors import ArtifactError

TRAINED = ("final_lora", "final_model", "checkpoints/final_lora", "checkpoints/final_model")
"""Folders with the result of a training, relative to the directory of a task."""

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""File endings of archives."""


def trained_folder(results: Path, task: str, name: str | None = None) -> Path | None:
    """Return the folder that a training left; `name`, if given, is the name of its archive."""
    directory = task_dir(results, task)
    wanted = [top for top in TRAINED if name is None or Path(top).name == without_ending(name)]
    return next((directory / top for top in wanted if (directory / top).is_dir()), None)


def noted_digest(folder: Path, name: str | None = None) -> str | None:
    """Return the SHA-256 of a folder's archive from the manifest of its task, or None when it is unknown.

    It also identifies the folder, which was packed at that time; an archive that was added later does not.
    """
    try:
        manifest = read_manifest(folder.parent)
    except ArtifactError:
        return None
    entries = [manifest.entry(n) for n in _names(folder, name)] if manifest else []
    return next((entry.sha256 for entry in entries if entry is not None and entry.sha256), None)


def archive_beside(folder: Path, name: str | None = None) -> Path | None:
    """Return the archive next to a folder, or None."""
    return next((file for n in _names(folder, name) if (file := folder.with_name(n)).is_file()), None)


def without_ending(name: str) -> str:
    """Return the name of an archive without its ending."""
    return next((name.removesuffix(end) for end in ARCHIVES if name.endswith(end)), name)


def _names(folder: Path, name: str | None) -> list[str]:
    return [name] if name is not None else [f"{folder.name}{end}" for end in ARCHIVES]
