"""`checkpoint.load`: the folder with weights that a training goes on from, wherever they lie. [protocol 4.9].

What is on this file system is used where it is, even when the spec names it by the URL of our own endpoint; the rest is
fetched and unpacked into `<task dir>/imported_checkpoint`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from mloc_prefect.artifacts.cache import check_url, fetch_folder
from mloc_prefect.artifacts.delivery import sendable_headers, shown_url
from mloc_prefect.artifacts.download import DownloadError, Source, check_digest, download
from mloc_prefect.artifacts.imported import IMPORTED, NOTE, Importer, inside
from mloc_prefect.artifacts.layout import MANIFEST, task_dir
from mloc_prefect.artifacts.mirrors import is_url
from mloc_prefect.artifacts.store import FsspecArtifactStore
from mloc_prefect.artifacts.storing import digest_key
from mloc_prefect.artifacts.trained import ARCHIVES, archive_beside, noted_digest, trained_folder
from mloc_prefect.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mloc_prefect.artifacts.delivery import AllowedHosts

_FILES = re.compile(r".*/api/v1/results/(?P<task>[^/]+)/files/(?P<name>[^/]+)/?")
_LONGEST_NOTE = 200  # bytes; 64 of them are the digest
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Places:
    """Where checkpoints may be.

    Attributes:
        task_dir: Directory of the task that loads one.
        results: Root of all tasks' results on this file system.
        base: Folder that relative paths of the spec start from.
        cache: Folder for copies of folders behind fsspec URLs.
        allowed: Hosts that may be called.
        endpoint: URL of our own HTTP endpoint, or None.
    """

    task_dir: Path
    results: Path
    base: Path
    cache: Path
    allowed: AllowedHosts
    endpoint: str | None = None


def load_checkpoint(
    load: Mapping[str, Any],
    places: Places,
    tell: Callable[[str, float | None], None] = lambda _text, _fraction: None,
) -> Path:
    """Return the folder that `checkpoint.load` names.

    Args:
        load: The mapping, its references filled in.
        places: Where it may be.
        tell: Told what is being done, and how much of it; may raise to give up.

    Raises:
        ArtifactError: It is not there, cannot be fetched, or must not be unpacked; MLOC's texts where it has them.
    """
    kind = str(load.get("type") or "local").strip().lower()
    if kind not in {"local", "http"}:
        raise ArtifactError(f"Unsupported checkpoint load type '{load.get('type')}'")
    path = _text(load, "path") or (_text(load, "uri") if kind == "local" else None)
    if path is not None:
        return _local(path, load, places, tell)
    task, name = _text(load, "task_id", "taskId"), _text(load, "filename")
    if task is not None and (found := _of_task(task, name, load, places, tell)):
        return found
    if kind == "local":
        if task is None:
            raise ArtifactError("checkpoint.load.path is required for local checkpoints")
        asked = f" of which an archive has sha256 {sha}" if (sha := _text(load, "sha256")) else ""
        raise ArtifactError(f"task {task} has no trained weights below {places.results}{asked}")
    return _remote(_url_of(load, places), load, places, tell)


def _local(path: str, load: Mapping[str, Any], places: Places, tell: Callable[[str, float | None], None]) -> Path:
    if path.lower().startswith(("http://", "https://")):
        return _remote(path, load, places, tell)
    if is_url(path):
        check_url(path, places.allowed)
        if path.lower().endswith(ARCHIVES):
            return _stored(path, load, places, tell)
        if _text(load, "sha256"):
            raise _no_archive(shown_url(path))
        tell("fetching checkpoint", None)
        return inside(fetch_folder(path, places.cache), _text(load, "subdir"))
    try:
        found = places.base / Path(path).expanduser()
        there = found.exists()
    except (OSError, ValueError, RuntimeError):
        there = False
    if not there:
        raise ArtifactError(f"Checkpoint path {path} not found")
    if found.is_dir():
        if folder := _vouched(found, None, load, places, tell):
            return folder
        raise _no_archive(path)
    if not found.is_file():
        raise ArtifactError(f"Checkpoint path {path} is neither a folder nor a file")
    return _importer(load, places, tell).unpacked(found)


def _no_archive(path: str) -> ArtifactError:
    text = f"Checkpoint path {path} is a folder, and sha256 is that of an archive"
    return ArtifactError(text, hint="name the archive, or leave sha256 out")


def _of_task(
    task: str, name: str | None, load: Mapping[str, Any], places: Places, tell: Callable[[str, float | None], None]
) -> Path | None:
    """Return what a task trained; None when it is not here, or nothing here tells that it is what `sha256` asks for."""
    found = trained_folder(places.results, task, name)
    return _vouched(found, name, load, places, tell) if found else None


def _vouched(
    folder: Path,
    name: str | None,
    load: Mapping[str, Any],
    places: Places,
    tell: Callable[[str, float | None], None],
) -> Path | None:
    """Return a folder, or what its archive holds when only that can be of the digest that is asked for.

    Raises:
        ArtifactError: The archive has another one.
    """
    wanted = _text(load, "sha256")
    if wanted is None or wanted.lower() == noted_digest(folder, name):
        return inside(folder, _text(load, "subdir"))
    archive = archive_beside(folder, name)
    return _importer(load, places, tell).unpacked(archive) if archive else None


def _remote(url: str, load: Mapping[str, Any], places: Places, tell: Callable[[str, float | None], None]) -> Path:
    near = file_of_endpoint(url, places.endpoint, places.allowed)
    # A task that is not done may still write its weights: the endpoint decides.
    if near is not None and (task_dir(places.results, near[0]) / MANIFEST).is_file():
        found = _of_task(*near, load, places, tell)
        if found is not None:
            return found
    places.allowed.check(url)
    source = _source(url, load)

    def fetch(file: Path) -> None:
        download(source, file, places.allowed, lambda fraction: tell("fetching checkpoint", fraction))

    return _importer(load, places, tell).fetched(url, fetch)


def _stored(url: str, load: Mapping[str, Any], places: Places, tell: Callable[[str, float | None], None]) -> Path:
    """Return the folder in an archive behind an fsspec URL, as `artifacts/storing.py` leaves it, or anybody else."""
    home, _, name = url.rpartition("/")

    def fetch(file: Path) -> None:
        tell("fetching checkpoint", None)
        try:
            store = FsspecArtifactStore(home)
            store.get(name, file)
            noted = _noted(store, name, file)
        except ArtifactError as error:
            gone = isinstance(error.__cause__, FileNotFoundError)
            raise DownloadError(error.message, hint=error.hint, retryable=not gone) from error
        check_digest(file, _text(load, "sha256") or noted)

    return _importer(load, places, tell).fetched(url, fetch)


def _noted(store: FsspecArtifactStore, name: str, file: Path) -> str | None:
    """Return the digest that stands beside a file in a store, alone or before the name as `sha256sum` writes it."""
    note = digest_key(name)
    if not store.exists(note):
        return None
    copy = file.with_name(NOTE)  # on disk: somebody else's file may be of any size
    store.get(note, copy)
    with copy.open("rb") as read:
        first = read.read(_LONGEST_NOTE).decode(errors="replace").lower().split(maxsplit=1)
    copy.unlink()
    return first[0] if first and _SHA256.fullmatch(first[0]) else None


def _url_of(load: Mapping[str, Any], places: Places) -> str:
    url = _text(load, "url")
    if url is not None:
        return url
    base, task = _text(load, "base_url", "baseUrl") or places.endpoint, _text(load, "task_id", "taskId")
    if base is None or task is None:
        raise ArtifactError(
            "checkpoint.load.url is required for HTTP checkpoints (set base_url or ORCHESTRATOR_BASE_URL)"
        )
    name = _text(load, "filename") or "final_model.zip"
    return f"{base.rstrip('/')}/api/v1/results/{quote(task, safe='')}/files/{quote(name, safe='')}"


def _source(url: str, load: Mapping[str, Any]) -> Source:
    headers = sendable_headers(load.get("headers"), "checkpoint.load.headers")
    sent = {k: v for k, v in headers.items() if k.lower() != "content-type"}
    timeout = load.get("timeoutSec", load.get("timeout_sec"))
    try:
        seconds = 60.0 if timeout is None else float(timeout)
    except (TypeError, ValueError):
        raise ArtifactError(f"checkpoint.load.timeoutSec must be a number, found {timeout!r}") from None
    return Source(url, sent, seconds, _text(load, "sha256"))


def _importer(load: Mapping[str, Any], places: Places, tell: Callable[[str, float | None], None]) -> Importer:
    texts = (_text(load, name) for name in ("sha256", "subdir", "archive_format", "filename"))
    return Importer(places.task_dir / IMPORTED, tell, *texts)


def file_of_endpoint(url: str, endpoint: str | None, allowed: AllowedHosts) -> tuple[str, str] | None:
    """Return task id and file name when `url` names a file of our own endpoint, None for all others."""
    try:
        parts = urlsplit(url)
    except ValueError:  # no URL at all
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
