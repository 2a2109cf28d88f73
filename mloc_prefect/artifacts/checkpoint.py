"""Finds the folder with weights that `checkpoint.load` names and a training starts from. [protocol 4.9].

A folder on this file system is used in place, also when the spec names it by the URL of our own endpoint; anything else
is fetched and unpacked into `<task dir>/imported_checkpoint`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from mloc_prefect.artifacts.cache import fetch_folder
from mloc_prefect.artifacts.imported_checkpoint import IMPORTED, NOTE, CheckpointImporter, inside
from mloc_prefect.artifacts.layout import MANIFEST, task_dir
from mloc_prefect.artifacts.mirrors import is_url
from mloc_prefect.artifacts.trained_models import ARCHIVES, archive_beside, noted_digest, trained_folder
from mloc_prefect.artifacts.transfer.artifact_store import FsspecArtifactStore
from mloc_prefect.artifacts.transfer.file_download import DownloadError, DownloadSource, check_digest, download
from mloc_prefect.artifacts.transfer.outgoing import check_url, sendable_headers, shown_url
from mloc_prefect.artifacts.transfer.store_destination import digest_key
from mloc_prefect.errors import ArtifactError
from mloc_prefect.trust.local_inputs import path_of
from mloc_prefect.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts
    from mloc_prefect.trust.input_roots import InputRoots

_FILES = re.compile(r".*/api/v1/results/(?P<task>[^/]+)/files/(?P<name>[^/]+)/?")
_LONGEST_NOTE = 200  # bytes; 64 of them are the digest
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class CheckpointRoots:
    """Directories and hosts that checkpoints may come from.

    Attributes:
        task_dir: Directory of the task that loads one.
        results: Root of all tasks' results on this file system.
        base: Folder that relative paths of the spec are relative to.
        cache: Folder for copies of folders behind fsspec URLs.
        allowed: Hosts that may be called.
        endpoint: URL of our own HTTP endpoint, or None.
        inputs: Where files of this machine must be; None for specs of the user himself.
    """

    task_dir: Path
    results: Path
    base: Path
    cache: Path
    allowed: AllowedHosts
    endpoint: str | None = None
    inputs: InputRoots | None = None


def load_checkpoint(
    load: Mapping[str, Any],
    roots: CheckpointRoots,
    report: Callable[[str, float | None], None] = lambda _text, _fraction: None,
) -> Path:
    """Return the folder that `checkpoint.load` names.

    Args:
        load: The mapping, with its references resolved.
        roots: Where it may come from.
        report: Called with the current step and its fraction; may raise to stop.

    Raises:
        ArtifactError: It does not exist, cannot be fetched, or must not be unpacked; with MLOC's texts if it has any.
    """
    kind = str(load.get("type") or "local").strip().lower()
    if kind not in {"local", "http"}:
        raise ArtifactError(f"Unsupported checkpoint load type '{load.get('type')}'")
    path = _text(load, "path") or (_text(load, "uri") if kind == "local" else None)
    if path is not None:
        return _local(path, load, roots, report)
    task, name = _text(load, "task_id", "taskId"), _text(load, "filename")
    if task is not None and (found := _of_task(task, name, load, roots, report)):
        return found
    if kind == "local":
        if task is None:
            raise ArtifactError("checkpoint.load.path is required for local checkpoints")
        asked = f" of which an archive has sha256 {sha}" if (sha := _text(load, "sha256")) else ""
        raise ArtifactError(f"task {task} has no trained weights below {roots.results}{asked}")
    return _remote(_url_of(load, roots), load, roots, report)


def _check_kind(path: str, roots: CheckpointRoots) -> None:
    """Refuse kinds of URLs that submitted specs may not use."""
    if roots.inputs is not None:
        path_of(path)


def _local(
    path: str, load: Mapping[str, Any], roots: CheckpointRoots, report: Callable[[str, float | None], None]
) -> Path:
    if path.lower().startswith(("http://", "https://")):
        return _remote(path, load, roots, report)
    _check_kind(path, roots)
    path = local_path(path) or path
    if is_url(path):
        check_url(path, roots.allowed)
        if path.lower().endswith(ARCHIVES):
            return _stored(path, load, roots, report)
        if _text(load, "sha256"):
            raise _no_archive(shown_url(path))
        report("fetching checkpoint", None)
        return inside(fetch_folder(path, roots.cache, allowed=roots.allowed), _text(load, "subdir"))
    found = _found(path, roots)
    if found is None:
        raise ArtifactError(f"Checkpoint path {path} not found")
    if found.is_dir():
        if folder := _verified(found, None, load, roots, report):
            return folder
        raise _no_archive(path)
    if not found.is_file():
        raise ArtifactError(f"Checkpoint path {path} is neither a folder nor a file")
    return _importer(load, roots, report).unpacked(found)


def _found(path: str, roots: CheckpointRoots) -> Path | None:
    """Return the file or folder of this machine that a path names, or None.

    Raises:
        ArtifactError: The spec may not read it.
    """
    try:
        found = roots.base / Path(local_path(path) or path).expanduser()
        if roots.inputs is not None:
            found = roots.inputs.admit(found, path)
        return found if found.exists() else None
    except (OSError, ValueError, RuntimeError):
        return None


def _no_archive(path: str) -> ArtifactError:
    text = f"Checkpoint path {path} is a folder, and sha256 is that of an archive"
    return ArtifactError(text, hint="name the archive, or leave sha256 out")


def _of_task(
    task: str,
    name: str | None,
    load: Mapping[str, Any],
    roots: CheckpointRoots,
    report: Callable[[str, float | None], None],
) -> Path | None:
    """Return the weights of a task; None when they are not here or cannot be verified against `sha256`."""
    found = trained_folder(roots.results, task, name)
    return _verified(found, name, load, roots, report) if found else None


def _verified(
    folder: Path,
    name: str | None,
    load: Mapping[str, Any],
    roots: CheckpointRoots,
    report: Callable[[str, float | None], None],
) -> Path | None:
    """Return a folder, or the content of its archive when only that can be verified against `sha256`.

    Raises:
        ArtifactError: The archive has another digest.
    """
    if roots.inputs is not None:
        roots.inputs.admit_folder(folder, str(folder))
    wanted = _text(load, "sha256")
    if wanted is None or wanted.lower() == noted_digest(folder, name):
        return inside(folder, _text(load, "subdir"))
    archive = archive_beside(folder, name)
    if archive is not None and roots.inputs is not None:
        archive = roots.inputs.admit(archive, str(archive))
    return _importer(load, roots, report).unpacked(archive) if archive else None


def _remote(
    url: str, load: Mapping[str, Any], roots: CheckpointRoots, report: Callable[[str, float | None], None]
) -> Path:
    local = file_of_endpoint(url, roots.endpoint, roots.allowed)
    # An unfinished task may still write its weights: then the endpoint decides.
    if local is not None and (task_dir(roots.results, local[0]) / MANIFEST).is_file():
        found = _of_task(*local, load, roots, report)
        if found is not None:
            return found
    roots.allowed.check(url)
    source = _source(url, load)

    def fetch(file: Path) -> None:
        download(source, file, roots.allowed, lambda fraction: report("fetching checkpoint", fraction))

    return _importer(load, roots, report).fetched(url, fetch)


def _stored(
    url: str, load: Mapping[str, Any], roots: CheckpointRoots, report: Callable[[str, float | None], None]
) -> Path:
    """Return the folder in an archive behind an fsspec URL, e.g. one that `store_destination` wrote."""
    home, _, name = url.rpartition("/")

    def fetch(file: Path) -> None:
        report("fetching checkpoint", None)
        try:
            store = FsspecArtifactStore(home)
            store.get(name, file)
            noted = _noted(store, name, file)
        except ArtifactError as error:
            is_missing = isinstance(error.__cause__, FileNotFoundError)
            raise DownloadError(error.message, hint=error.hint, retryable=not is_missing) from error
        check_digest(file, _text(load, "sha256") or noted)

    return _importer(load, roots, report).fetched(url, fetch)


def _noted(store: FsspecArtifactStore, name: str, file: Path) -> str | None:
    """Return the digest next to a file in a store, alone or before the name as `sha256sum` writes it."""
    note = digest_key(name)
    if not store.exists(note):
        return None
    copy = file.with_name(NOTE)  # to disk: a foreign file may have any size
    store.get(note, copy)
    with copy.open("rb") as read:
        first = read.read(_LONGEST_NOTE).decode(errors="replace").lower().split(maxsplit=1)
    copy.unlink()
    return first[0] if first and _SHA256.fullmatch(first[0]) else None


def _url_of(load: Mapping[str, Any], roots: CheckpointRoots) -> str:
    url = _text(load, "url")
    if url is not None:
        return url
    base, task = _text(load, "base_url", "baseUrl") or roots.endpoint, _text(load, "task_id", "taskId")
    if base is None or task is None:
        raise ArtifactError(
            "checkpoint.load.url is required for HTTP checkpoints (set base_url or ORCHESTRATOR_BASE_URL)"
        )
    name = _text(load, "filename") or "final_model.zip"
    return f"{base.rstrip('/')}/api/v1/results/{quote(task, safe='')}/files/{quote(name, safe='')}"


def _source(url: str, load: Mapping[str, Any]) -> DownloadSource:
    headers = sendable_headers(load.get("headers"), "checkpoint.load.headers")
    sent = {k: v for k, v in headers.items() if k.lower() != "content-type"}
    timeout = load.get("timeoutSec", load.get("timeout_sec"))
    try:
        seconds = 60.0 if timeout is None else float(timeout)
    except (TypeError, ValueError):
        raise ArtifactError(f"checkpoint.load.timeoutSec must be a number, found {timeout!r}") from None
    return DownloadSource(url, sent, seconds, _text(load, "sha256"))


def _importer(
    load: Mapping[str, Any], roots: CheckpointRoots, report: Callable[[str, float | None], None]
) -> CheckpointImporter:
    texts = (_text(load, name) for name in ("sha256", "subdir", "archive_format", "filename"))
    return CheckpointImporter(roots.task_dir / IMPORTED, report, *texts)


def file_of_endpoint(url: str, endpoint: str | None, allowed: AllowedHosts) -> tuple[str, str] | None:
    """Return task id and file name when `url` names a file of our own endpoint, else None."""
    try:
        parts = urlsplit(url)
    except ValueError:  # not a URL
        return None
    match = _FILES.fullmatch(parts.path)
    if match is None or not parts.netloc:
        return None
    if not (parts.netloc == urlsplit(endpoint or "").netloc or allowed.is_loopback(url)):
        return None
    return unquote(match["task"]), unquote(match["name"])


def _text(load: Mapping[str, Any], *names: str) -> str | None:
    for name in names:
        value = load.get(name)
        if value is not None and str(value).strip():
            return str(value).strip()
    return None
