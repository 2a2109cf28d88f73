"""`manifest.json`: the files of a finished stage; its creation commits the stage. [protocol 1.6]."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts import atomic
from mloc_prefect.artifacts.layout import MANIFEST, POSTED, RESPONSES
from mloc_prefect.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_STANDARD = (RESPONSES, "logs", "artifacts")  # always required in the later generation's manifests


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One file or directory of a task.

    Attributes:
        name: Last component.
        path: Path relative to the task directory.
        type: `result`, `logs`, `artifact` or `directory`.
        required: Named in `spec.output.artifacts`, or standard.
        status: `present` or `missing`.
        updated_at: ISO time of the last change (UTC).
        size: Bytes; for a directory of all files in it.
        sha256: Hex digest, files only.
        file_count: Number of files, directories only.
    """

    name: str
    path: str
    type: str
    required: bool
    status: str
    updated_at: str | None = None
    size: int | None = None
    sha256: str | None = None
    file_count: int | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The record of a finished stage: the keys of the later generation, then ours.

    Attributes:
        task_id: Id of the task.
        generated_at: ISO time (UTC).
        entries: Files and directories.
        spec_sha256: Digest of the resolved spec; a stage is reused only for the same spec.
        status: `DONE`; nothing else is ever committed.
        attempt: Attempt that was committed.
        run_count: Run of the workflow that it belonged to.
        attempt_dir: Its directory, relative to the task directory.
        engine: Engine that ran it, or None.
        summary: Small facts for displays (model, rows, usage).
        name: `metadata.name` of the task, by which tasks of other submissions refer to it.
    """

    task_id: str
    generated_at: str
    entries: tuple[ManifestEntry, ...]
    spec_sha256: str
    status: str = "DONE"
    attempt: int = 1
    run_count: int = 1
    attempt_dir: str = ""
    engine: str | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    @property
    def short_name(self) -> str:
        """The name in references: of the stage or node, or the whole name of a single task. [protocol 2.6]."""
        return self.name.partition(":")[2] or self.name

    def entry(self, path: str) -> ManifestEntry | None:
        """Return the entry of a relative path, or None."""
        return next((e for e in self.entries if e.path == path), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, without the absent values of entries."""
        data = asdict(self)
        data["entries"] = [{k: v for k, v in e.items() if v is not None} for e in data["entries"]]
        return data


def read_manifest(directory: Path) -> Manifest | None:
    """Return the manifest of a task directory, or None when the task is not finished.

    Raises:
        ArtifactError: It exists, but cannot be read.
    """
    path = directory / MANIFEST
    try:
        data = atomic.read_json(path)
    except FileNotFoundError:
        return None
    try:
        entries = tuple(ManifestEntry(**_known(ManifestEntry, e)) for e in data["entries"])
        return Manifest(**{**_known(Manifest, data), "entries": entries})
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path} is not a manifest: {error}", hint="remove the file to run the task again"
        ) from error


def commit_manifest(directory: Path, manifest: Manifest) -> bool:
    """Create `manifest.json` unless it exists; True for the one caller that committed.

    Raises:
        ArtifactError: It cannot be written.
    """
    return atomic.create_exclusive(directory / MANIFEST, atomic.encode_json(manifest.to_dict()))


def supersede(directory: Path) -> None:
    """Rename the manifest of another spec, so that the task can run again; its content stays readable."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    try:
        (directory / POSTED).unlink(missing_ok=True)  # it was posted for that spec
        (directory / MANIFEST).rename(directory / f"manifest.{stamp}.json")
    except FileNotFoundError:
        return
    except OSError as error:
        raise ArtifactError(f"cannot set aside {directory / MANIFEST}: {error.strerror or error}") from error


def survey(directory: Path, *, result: tuple[int, str], required: Iterable[str] = ()) -> tuple[ManifestEntry, ...]:
    """Return the entries of a task directory.

    Args:
        directory: The task directory.
        result: Size and SHA-256 of `responses.json`, which is written after the manifest.
        required: `spec.output.artifacts`: relative paths that the user expects.
    """
    now = _iso(datetime.now(UTC).timestamp())
    entries = [ManifestEntry(RESPONSES, RESPONSES, "result", True, "present", now, *result)]
    wanted = dict.fromkeys(str(r).strip().strip("/") for r in required if str(r).strip().strip("/"))
    paths = dict.fromkeys((*_STANDARD, *wanted, *_others(directory), *_artifacts(directory)))
    entries += [_entry(directory, p, required=p in _STANDARD or p in wanted) for p in paths if p != RESPONSES]
    return tuple(entries)


def _others(directory: Path) -> list[str]:
    hidden = ("attempts", MANIFEST)
    return sorted(
        p.name
        for p in directory.iterdir()
        if p.name not in hidden and not p.name.startswith((".", "manifest.")) and not p.is_symlink()
    )


def _artifacts(directory: Path) -> list[str]:
    """Return the files directly below `artifacts/`, which a client can download by name."""
    folder = directory / "artifacts"
    if not folder.is_dir():
        return []
    return sorted(f"artifacts/{p.name}" for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


def _entry(directory: Path, path: str, *, required: bool) -> ManifestEntry:
    target, name = directory / path, path.rsplit("/", 1)[-1]
    # os.path accepts any text: what cannot be a file name is a missing file.
    inside = os.path.lexists(target) and target.resolve().is_relative_to(directory.resolve())
    if inside and target.is_file():
        size, sha = atomic.digest(target)
        return ManifestEntry(name, path, "artifact", required, "present", _iso(target.stat().st_mtime), size, sha)
    kind = "logs" if path == "logs" else "directory"
    if inside and target.is_dir():
        files = [f for f in target.rglob("*") if f.is_file()]
        size = sum(f.stat().st_size for f in files)
        return ManifestEntry(
            name, path, kind, required, "present", _iso(target.stat().st_mtime), size, None, len(files)
        )
    return ManifestEntry(name, path, "logs" if path == "logs" else "artifact", required, "missing")


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _known(kind: type, data: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in data.items() if k in kind.__dataclass_fields__}  # type: ignore[attr-defined]  # a dataclass
