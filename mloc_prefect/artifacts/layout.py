"""Where the files of a task are. [protocol 1.4, 4.8].

`<results root>/<safe task id>/` has responses.json, manifest.json, logs/, artifacts/ and attempts/<run_count>-<n>/.
With a destination path the directory is there and the usual path links to it, so a task is always found by its id.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import ArtifactError
from mloc_prefect.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Mapping

RESPONSES = "responses.json"
MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
"""Metrics of a training, one JSON object per line."""
POSTED = ".posted"
"""Size and digest of a `responses.json` that a client has posted, see `result_guard`."""
_LONGEST_NAME = 255  # bytes of one component, on all usual file systems
_SHOWN = 80  # characters of a refused path in messages
_LONGEST = 180  # characters; with a hash and a suffix still below the 255 bytes of a file name for ASCII ids


def safe_task_id(task_id: str) -> str:
    """Return the directory name of a task; different ids never share one.

    Letters and digits (Unicode), `-` and `_` stay (protocol 1.4). If a character had to change, `~` and a hash of the
    id are appended; `~` itself is replaced, so that no unchanged id looks like a changed one.

    Raises:
        ArtifactError: The id is blank.
    """
    if not task_id.strip():
        raise ArtifactError("task_id is required")
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in task_id)
    if name == task_id and len(name.encode()) <= _LONGEST:
        return name
    sha = hashlib.sha256(task_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    short = name.encode()[: _LONGEST - 40].decode("utf-8", "ignore")
    return f"{short}~{sha}"


def task_dir(root: Path, task_id: str) -> Path:
    """Return the usual directory of a task, which may be a link to its destination."""
    return root / safe_task_id(task_id)


def destination_dir(root: Path, task_id: str, destination: Mapping[str, Any] | None, *, allow_outside: bool) -> Path:
    """Return the directory that `output.destination` names. [protocol 4.8].

    Args:
        root: Absolute results root.
        task_id: Id of the task; appended unless the path already ends with it.
        destination: `spec.output.destination` or None.
        allow_outside: Whether it may be outside of `root` (setting `MLOC_ALLOW_OUTSIDE_RESULTS`).

    Raises:
        ArtifactError: The path leaves the results root, or is not a path.
    """
    usual = task_dir(root, task_id)
    path = destination_path(destination)
    if path is None:
        return usual
    wanted = _expanded(path)
    if wanted.name not in {task_id, usual.name}:
        wanted = wanted / usual.name
    target = Path(os.path.abspath(root / wanted))  # noqa: PTH100 - resolves `..` without following links
    if not allow_outside and not (_inside(target, root) and _inside(_real(target), _real(root))):
        raise ArtifactError(
            f"spec.output.destination.path {path!r} leaves the results root {root}",
            hint="use a path below it, another --results-dir, or set MLOC_ALLOW_OUTSIDE_RESULTS=1",
        )
    return target


def _expanded(path: str) -> Path:
    try:
        os.fsencode(path)
        if "\0" in path or any(len(os.fsencode(part)) > _LONGEST_NAME for part in Path(path).parts):
            raise ValueError(path)
        return Path(path).expanduser()
    except (ValueError, RuntimeError):  # not a file name, or `~name` of an unknown user
        shown = ascii(path if len(path) <= _SHOWN else f"{path[:_SHOWN]}...")
        raise ArtifactError(
            f"spec.output.destination.path {shown} is not a path", hint="write a path below the results root"
        ) from None


def destination_path(destination: Mapping[str, Any] | None) -> str | None:
    """Return the destination's path on this file system, or None (type http, blank, absent, a URL)."""
    path = _path(destination)
    return path if path is None or "://" not in path else local_path(path)


def destination_url(destination: Mapping[str, Any] | None) -> str | None:
    """Return the destination's path when it is an fsspec URL of another file system, else None."""
    path = _path(destination)
    return path if path is not None and destination_path(destination) is None else None


def _path(destination: Mapping[str, Any] | None) -> str | None:
    destination = destination or {}
    if str(destination.get("type") or "local").strip().lower() == "http":
        return None
    path = destination.get("path")
    return str(path).strip() or None if path is not None else None


def open_task_dir(root: Path, task_id: str, target: Path) -> Path:
    """Create the task's directory at `target`, linked from its usual path, and return it.

    Raises:
        ArtifactError: It cannot be created.
    """
    usual = task_dir(root, task_id)
    try:
        if target != usual and usual.is_dir() and not usual.is_symlink():
            _link(target, usual)  # from an earlier run without this path: its files stay where they are
            return usual
        if not root.exists():  # a flow in another process than ours, whose umask is not `private_files`'s
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.mkdir(parents=True, exist_ok=True)
        if target != usual:
            _link(usual, target)
    except OSError as error:
        raise ArtifactError(f"cannot create {target}: {error.strerror or error}") from error
    return target


def new_attempt_dir(directory: Path, run_count: int, attempt: int) -> Path:
    """Create and return `attempts/<run_count>-<n>` with the first free n >= `attempt`: attempts never share files.

    Raises:
        ArtifactError: It cannot be created.
    """
    parent = directory / "attempts"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            path = parent / f"{run_count}-{attempt}"
            with suppress(FileExistsError):
                path.mkdir()
                return path
            attempt += 1
    except OSError as error:
        raise ArtifactError(f"cannot create {parent}: {error.strerror or error}") from error


def attempt_dirs(directory: Path) -> list[Path]:
    """Return the attempt directories of a task, newest run and attempt first."""
    found = [(attempt_number(p), p) for p in (directory / "attempts").glob("*-*") if p.is_dir()]
    return [path for _, path in sorted(found, reverse=True)]


def attempt_number(path: Path) -> tuple[int, int]:
    """Return run count and attempt of an attempt directory; zeros for another name."""
    run, _, attempt = path.name.partition("-")
    return (int(run), int(attempt)) if run.isdigit() and attempt.isdigit() else (0, 0)


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    if not link.exists():
        with suppress(FileExistsError):
            link.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _inside(path: Path, root: Path) -> bool:
    return path != root and path.is_relative_to(root)
