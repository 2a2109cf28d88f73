"""SHA-256 of files, stored next to them in `.sha256/` with size, mtime and inode of the file.

The inode distinguishes two uploads of the same size within one tick of the kernel's clock. Executors leave it out.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING

from mloc_prefect.artifacts import atomic
from mloc_prefect.artifacts.manifest import read_manifest
from mloc_prefect.errors import ArtifactError

if TYPE_CHECKING:
    import os
    from pathlib import Path

_log = logging.getLogger(__name__)
_AT_ONCE = 64 << 20  # bytes; smaller files are hashed while the client waits
_DIRECTORY = ".sha256"

_running: dict[Path, asyncio.Task[None]] = {}


async def etag(directory: Path, path: Path, found: os.stat_result) -> str:
    """Return the entity tag of a file: its SHA-256, or a weak tag while that of a large file is being computed.

    Args:
        directory: Directory of the task.
        path: The file.
        found: Status of the open file.
    """
    known = await asyncio.to_thread(_known, directory, path, found)
    if known is None and found.st_size <= _AT_ONCE:
        known = await asyncio.to_thread(_compute, directory, path, found)
    if known is not None:
        return f'"{known}"'
    if path not in _running:
        _running[path] = task = asyncio.create_task(_later(directory, path, found))
        task.add_done_callback(lambda _: _running.pop(path, None))
    return f'W/"{found.st_size:x}-{found.st_mtime_ns:x}"'


def remember(directory: Path, path: Path, found: os.stat_result, sha256: str) -> None:
    """Store the digest of a file; if that fails, it is computed again when needed."""
    try:
        note = [found.st_size, found.st_mtime_ns, sha256, found.st_ino]
        atomic.write_json(_sidecar(directory, path), note, indent=None)
    except ArtifactError as error:
        _log.warning("could not store the digest of %s: %s", path.name, error)


async def _later(directory: Path, path: Path, found: os.stat_result) -> None:
    await asyncio.to_thread(_compute, directory, path, found)


def _known(directory: Path, path: Path, found: os.stat_result) -> str | None:
    try:
        size, changed, sha256, *inode = json.loads(_sidecar(directory, path).read_bytes())
    except (OSError, ValueError, TypeError):
        return _in_manifest(directory, path, found)
    if (size, changed) == (found.st_size, found.st_mtime_ns) and inode in ([], [found.st_ino]):
        return str(sha256)
    return _in_manifest(directory, path, found)


def _in_manifest(directory: Path, path: Path, found: os.stat_result) -> str | None:
    """Return the digest in the manifest of a finished stage, if the file was not written after it."""
    try:
        manifest = read_manifest(directory)
        entry = manifest.entry(path.relative_to(directory).as_posix()) if manifest else None
        if (
            entry is None
            or entry.size != found.st_size
            or found.st_mtime > (directory / "manifest.json").stat().st_mtime
        ):
            return None
    except (ArtifactError, OSError):
        return None
    return entry.sha256


def _compute(directory: Path, path: Path, found: os.stat_result) -> str | None:
    try:
        _, sha256 = atomic.digest(path)
        after = path.stat()
    except (ArtifactError, OSError):
        return None
    if (after.st_ino, after.st_size, after.st_mtime_ns) != (found.st_ino, found.st_size, found.st_mtime_ns):
        return None  # replaced while it was read
    remember(directory, path, found, sha256)
    return sha256


def _sidecar(directory: Path, path: Path) -> Path:
    return directory / _DIRECTORY / path.relative_to(directory)
