"""`checkpoint.load`: the folder with weights that a training goes on from, wherever they lie. [protocol 4.9].

What is on this file system is used where it is, even when the spec names it by the URL of our own endpoint; the rest is
fetched and unpacked into `<task dir>/imported_checkpoint`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from mloc_prefect.artifacts.cache import check_url, fetch_folder
from mloc_prefect.artifacts.delivery import shown_url
from mloc_prefect.artifacts.download import DownloadError, Source, check_digest, download
from mloc_prefect.artifacts.layout import task_dir
from mloc_prefect.artifacts.mirrors import is_url
from mloc_prefect.artifacts.store import FsspecArtifactStore
from mloc_prefect.artifacts.storing import digest_key
from mloc_prefect.artifacts.unpack import Kind, kind_of, unpack
from mloc_prefect.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mloc_prefect.artifacts.delivery import AllowedHosts

IMPORTED = "imported_checkpoint"
TRAINED = ("final_lora", "final_model", "checkpoints/final_lora", "checkpoints/final_model")
"""Where trainings leave their result, below the directory of a task."""

_EXTRACTED = "extracted"
_FETCHED = ".fetched.json"
_FILES = re.compile(r".*/api/v1/results/(?P<task>[^/]+)/files/(?P<name>[^/]+)/?")
_TARS = frozenset({"tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"})
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


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
    if task is not None and (found := _trained(places.results, task, name)):
        return _inside(found, _text(load, "subdir"))
    if kind == "local":
        if task is not None:
            raise ArtifactError(f"task {task} has no trained weights below {places.results}")
        raise ArtifactError("checkpoint.load.path is required for local checkpoints")
    return _remote(load, places, tell)


def _local(path: str, load: Mapping[str, Any], places: Places, tell: Callable[[str, float | None], None]) -> Path:
    subdir = _text(load, "subdir")
    if is_url(path):
        check_url(path, places.allowed)
        if path.lower().endswith(_ARCHIVES):
            return _stored(path, load, places, tell)
        tell("fetching checkpoint", None)
        return _inside(fetch_folder(path, places.cache), subdir)
    try:
        found = places.base / Path(path).expanduser()
        there = found.exists()
    except (OSError, ValueError, RuntimeError):
        there = False
    if not there:
        raise ArtifactError(f"Checkpoint path {path} not found")
    if found.is_dir():
        return _inside(found, subdir)
    kind = _archive_kind(found, found.name, load)
    if kind is None:
        raise ArtifactError(f"Checkpoint path {path} is a file, but no zip or tar archive")
    return _extract(found, kind, _emptied(places.task_dir / IMPORTED), subdir, tell)


def _remote(load: Mapping[str, Any], places: Places, tell: Callable[[str, float | None], None]) -> Path:
    url = _url_of(load, places)
    near = _near(url, places)
    if near is not None:
        return _inside(near, _text(load, "subdir"))
    source = _source(url, load)

    def fetch(file: Path) -> None:
        download(source, file, places.allowed, lambda fraction: tell("fetching checkpoint", fraction))

    return _imported(url, load, places, fetch, tell)


def _stored(url: str, load: Mapping[str, Any], places: Places, tell: Callable[[str, float | None], None]) -> Path:
    """Return the folder in an archive behind an fsspec URL, as `artifacts/storing.py` leaves it, or anybody else."""
    home, _, name = url.rpartition("/")

    def fetch(file: Path) -> None:
        tell("fetching checkpoint", None)
        try:
            store = FsspecArtifactStore(home)
            store.get(name, file)
            note = digest_key(name)
            noted = store.read(note).decode(errors="replace").strip() if store.exists(note) else None
        except ArtifactError as error:
            gone = isinstance(error.__cause__, FileNotFoundError)
            raise DownloadError(error.message, hint=error.hint, retryable=not gone) from error
        check_digest(file, _text(load, "sha256") or noted)

    return _imported(url, load, places, fetch, tell)


def _imported(
    url: str,
    load: Mapping[str, Any],
    places: Places,
    fetch: Callable[[Path], None],
    tell: Callable[[str, float | None], None],
) -> Path:
    """Return the folder in what `fetch` writes to a file, or that file when it is no archive."""
    subdir = _text(load, "subdir")
    name = _file_name(_text(load, "filename") or unquote(urlsplit(url).path.rstrip("/").rpartition("/")[2]))
    stamp = {"url": url, "name": name, "sha256": _text(load, "sha256"), "format": _text(load, "archive_format")}
    folder = places.task_dir / IMPORTED
    if (kept := _kept(folder, stamp)) is not None:
        return _inside(kept, subdir)
    folder = _emptied(folder)
    file = folder / name
    try:
        fetch(file)
    except DownloadError as error:
        file.unlink(missing_ok=True)
        text = f"Failed to download checkpoint from {shown_url(url)}: {error.message}"
        raise DownloadError(text, hint=error.hint, retryable=error.retryable) from error
    kind = _archive_kind(file, name, load)
    if kind is None:
        return file
    _extract(file, kind, folder, subdir, tell)
    file.unlink()  # unpacked; weights need not lie there twice
    (folder / _FETCHED).write_text(json.dumps(stamp))
    return _inside(_top(folder / _EXTRACTED), subdir)


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
    given = load.get("headers")
    headers = {str(k): str(v) for k, v in given.items()} if isinstance(given, dict) else {}
    sent = {k: v for k, v in headers.items() if k.lower() not in {"content-type", "content-length"}}
    timeout = load.get("timeoutSec", load.get("timeout_sec"))
    try:
        seconds = 60.0 if timeout is None else float(timeout)
    except (TypeError, ValueError):
        raise ArtifactError(f"checkpoint.load.timeoutSec must be a number, found {timeout!r}") from None
    return Source(url, sent, seconds, _text(load, "sha256"))


def _near(url: str, places: Places) -> Path | None:
    """Return the folder on this file system that a URL of our own endpoint means, None for all others."""
    found = file_of_endpoint(url, places.endpoint, places.allowed)
    if found is None:
        return None
    task, name = found
    directory = task_dir(places.results, task)
    return _trained(places.results, task, name) if (directory / "manifest.json").is_file() else None


def file_of_endpoint(url: str, endpoint: str | None, allowed: AllowedHosts) -> tuple[str, str] | None:
    """Return task id and file name when `url` names a file of our own endpoint, None for all others."""
    parts = urlsplit(url)
    match = _FILES.fullmatch(parts.path)
    if match is None or not parts.netloc:
        return None
    if not (parts.netloc == urlsplit(endpoint or "").netloc or allowed.is_loopback(url)):
        return None
    return unquote(match["task"]), unquote(match["name"])


def _trained(results: Path, task: str, name: str | None) -> Path | None:
    """Return the folder that a training left; `name` is that of its archive, when one is asked for."""
    directory = task_dir(results, task)
    if name is not None:
        stem = next((name.removesuffix(end) for end in _ARCHIVES if name.endswith(end)), name)
        wanted = [top for top in TRAINED if Path(top).name == stem]
    else:
        wanted = list(TRAINED)
    return next((directory / top for top in wanted if (directory / top).is_dir()), None)


def _archive_kind(file: Path, name: str, load: Mapping[str, Any]) -> Kind | None:
    """Return how to unpack a file, None for not at all. [protocol 4.9].

    Raises:
        ArtifactError: It is not the archive that the spec says.
    """
    asked = (_text(load, "archive_format") or "auto").lower()
    found = kind_of(file)
    if asked == "none":
        return None
    if asked == "auto":
        return found
    wanted: Kind = "zip" if asked == "zip" or (asked in _TARS and name.endswith(".zip")) else "tar"
    if asked not in _TARS | {"zip"}:
        wanted = "zip" if name.endswith(".zip") else "tar"
    if found != wanted:
        raise ArtifactError(f"Failed to unpack checkpoint archive: {name} is not a {wanted} archive")
    return wanted


def _extract(
    file: Path, kind: Kind, folder: Path, subdir: str | None, tell: Callable[[str, float | None], None]
) -> Path:
    try:
        unpack(file, folder / _EXTRACTED, kind=kind, on_progress=lambda part: tell("unpacking checkpoint", part))
    except ArtifactError as error:
        raise ArtifactError(f"Failed to unpack checkpoint archive: {error.message}", hint=error.hint) from error
    return _inside(_top(folder / _EXTRACTED), subdir)


def _top(extracted: Path) -> Path:
    """Return the one folder that an archive holds, else the archive's own root."""
    entries = [entry for entry in extracted.iterdir() if not entry.name.startswith(".")]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else extracted


def _inside(folder: Path, subdir: str | None) -> Path:
    """Return `subdir` of a folder; it counts from the archive's root, and from its one folder when that has it."""
    if subdir is None:
        return folder
    home = folder.parent if folder.parent.name == _EXTRACTED else folder
    for start in dict.fromkeys((folder, home)):
        path = Path(os.path.normpath(start / subdir))
        if path.is_relative_to(start) and path.is_dir():
            return path
    raise ArtifactError(f"Extracted checkpoint path {folder / subdir} does not exist")


def _kept(folder: Path, stamp: Mapping[str, Any]) -> Path | None:
    """Return what an earlier attempt fetched for the same request, so that a retry does not fetch it again."""
    try:
        if json.loads((folder / _FETCHED).read_bytes()) != stamp:
            return None
        return _top(folder / _EXTRACTED)
    except (OSError, ValueError):
        return None


def _emptied(folder: Path) -> Path:
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    except OSError as error:
        raise ArtifactError(f"cannot make {folder}: {error.strerror or error}") from error
    return folder


def _file_name(name: str) -> str:
    """Return the name that a download gets.

    Raises:
        ArtifactError: It is no plain file name.
    """
    if not name:
        return "checkpoint"
    if "/" in name or "\\" in name or "\0" in name or name in {".", "..", _EXTRACTED} or len(os.fsencode(name)) > 255:
        raise ArtifactError(f"checkpoint.load.filename {name[:80]!a} is not a plain file name")
    return name


def _text(load: Mapping[str, Any], *names: str) -> str | None:
    for name in names:
        value = load.get(name)
        if value is not None and str(value).strip():
            return str(value).strip()
    return None
