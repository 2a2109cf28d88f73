"""Copies results to destinations behind fsspec URLs, e.g. `output.destination.path: s3://bucket/prefix`.

`<path>/<task id>/` then has the files that the result names (archives of models, exports), each with its digest in
`<file>.sha256`, and `responses.json`, written last. A file that exists with the same digest is not sent again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts import atomic
from mloc_prefect.artifacts.layout import RESPONSES, destination_url, safe_task_id
from mloc_prefect.artifacts.transfer.artifact_store import FsspecArtifactStore
from mloc_prefect.artifacts.transfer.artifact_upload import READABLE, is_own, named_files
from mloc_prefect.artifacts.transfer.outgoing import DeliveryError, check_url, shown_url
from mloc_prefect.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.artifacts.transfer.artifact_store import ArtifactStore
    from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts


@dataclass(frozen=True, slots=True)
class StoreDestination:
    """`spec.output.destination` whose path is an fsspec URL.

    Attributes:
        url: URL below which each task gets a folder; options such as keys come from the environment of the worker.
    """

    url: str

    @classmethod
    def of(cls, destination: Mapping[str, Any] | None) -> StoreDestination | None:
        """Return the store in `output.destination`, or None when it names none."""
        url = destination_url(destination)
        return cls(url) if url is not None else None

    def check(self, allowed: AllowedHosts) -> None:
        """Refuse a URL that cannot be written, before anything is computed.

        Raises:
            ArtifactError: Its host is not allowed, or its kind is unknown.
            MissingExtraError: No library for this kind of URL is installed.
        """
        check_url(self.url, allowed)
        FsspecArtifactStore.check_kind(self.url)


def store_result(destination: StoreDestination, task_id: str, result: Path, directory: Path | None = None) -> None:
    """Copy the files that a result names, write their URLs into it, and copy the result.

    Args:
        destination: The store.
        task_id: Id of the task.
        result: File with the result object; rewritten when it names files.
        directory: Directory of the task: files elsewhere are not stored; None: all are.

    Raises:
        DeliveryError: The store cannot be reached or written; another try may succeed.
        MissingExtraError: No library for this kind of URL is installed.
    """
    try:
        store = FsspecArtifactStore(destination.url)
        folder = safe_task_id(task_id)
        content = atomic.read_json(result) if result.stat().st_size <= READABLE else None
        if isinstance(content, dict) and _store_files(store, folder, content, directory):
            atomic.write_json(result, content, indent=None)
        store.put(result, f"{folder}/{RESPONSES}")
    except ArtifactError as error:
        text = f"Failed to deliver task {task_id} result to {shown_url(destination.url)}: {error.message}"
        raise DeliveryError(text, retryable=True, hint=error.hint) from error


def _store_files(store: ArtifactStore, folder: str, content: dict[str, Any], directory: Path | None) -> bool:
    """Store the files that are not stored yet; return whether the result names any file."""
    found = False
    for holder, start in named_files(content):
        path = Path(str(holder.get(f"{start}path") or ""))
        if not (path.is_file() and is_own(path, directory)):
            continue
        sha256 = str(holder.get(f"{start}sha256") or atomic.digest(path)[1])
        holder[f"{start}url"] = _stored(store, path, f"{folder}/{path.name}", sha256)
        found = True
    return found


def _stored(store: ArtifactStore, path: Path, key: str, sha256: str) -> str:
    note = digest_key(key)
    if store.exists(key) and store.exists(note) and store.read(note).decode(errors="replace").strip() == sha256:
        return store.url_of(key)
    store.delete(note)  # that of the file that this one replaces
    url = store.put(path, key)
    store.write(note, f"{sha256}\n".encode())
    return url


def digest_key(key: str) -> str:
    """Return the key of the digest of a file."""
    return f"{key}.sha256"
