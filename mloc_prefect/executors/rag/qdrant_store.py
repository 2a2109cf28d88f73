"""Where a collection is, opening it, and the errors of Qdrant as one line."""

from __future__ import annotations

import json
import pickle
import sqlite3
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from mloc_prefect.artifacts.transfer.outgoing import (
    AllowedHosts,
    TransferError,
    is_temporary,
    shown_url,
)
from mloc_prefect.errors import ArtifactError
from mloc_prefect.execution.failures import one_line
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.sources.source_lookup import user_error
from mloc_prefect.process.lock_file import LockFile
from mloc_prefect.tasks.rag import FOLDER_SECONDS, address_fault, can_be_sent
from mloc_prefect.trust.input_roots import shown_path
from mloc_prefect.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qdrant_client import QdrantClient

    from mloc_prefect.executors.common.spec_reader import SpecReader
    from mloc_prefect.executors.sources.source_lookup import SourceLookup

MEMORY = ":memory:"
"""`qdrant.path` of a collection that lives as long as the task."""

_PORT = 6333  # of the client for URLs without a port, also for https
_TIMEOUT = 60.0
_META = "meta.json"  # what makes a folder one of Qdrant's
MARK = ".mloc_collections"
"""The file that says that a folder of collections is ours, and the lock of that folder.

Qdrant unpickles what a folder holds, so that the files in it could run code: a submitted spec may only open a folder
that a task of ours has made.
"""

_WAIT = 0.2
_TORN = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, IndexError),
    *(ImportError, pickle.UnpicklingError, sqlite3.Error),
)
"""What Qdrant's client raises for a folder whose files are incomplete or of another version."""


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Where a collection is.

    Attributes:
        collection: Its name.
        url: Of the server, with its port; None for an embedded collection.
        path: Folder of an embedded collection; None for a server and for `:memory:`.
        api_key: Key of the server; never shown.
        vector: Name of the vector in points that have several, or None.
        timeout: Seconds that a request may take.
        wait: Seconds to wait for a folder that another task uses.
        allowed: Hosts that may be called.
    """

    collection: str
    url: str | None = None
    path: Path | None = None
    api_key: str | None = field(default=None, repr=False)
    vector: str | None = None
    timeout: float = _TIMEOUT
    wait: float = FOLDER_SECONDS
    allowed: AllowedHosts = field(default_factory=AllowedHosts, repr=False)

    @classmethod
    def of(cls, qdrant: SpecReader, sources: SourceLookup) -> StoreAddress:
        """Read the block `qdrant`.

        Raises:
            UserError: A value is missing, or the server or the folder is not one that this request may use.
        """
        url, path, collection = qdrant.text("url"), qdrant.text("path"), qdrant.text("collection")
        if not collection:
            raise UserError(f"Missing {qdrant.path}.collection")
        if not url and not path:
            raise UserError(f"Missing {qdrant.path}.url")
        if url and path:
            raise UserError(f"{qdrant.path} has both url and path: it names a server or a folder, not both")
        return cls(
            collection,
            url=_server(url, sources) if url else None,
            path=_folder(path, sources) if path and path != MEMORY else None,
            api_key=_key(qdrant),
            vector=qdrant.text("vector"),
            timeout=qdrant.number("timeoutSec", _TIMEOUT),
            wait=qdrant.number("waitSec", FOLDER_SECONDS),
            allowed=sources.allowed,
        )

    @property
    def shown(self) -> str:
        """The server or folder as messages and results name it."""
        return shown_url(self.url) if self.url else str(self.path or MEMORY)


@contextmanager
def open_client(
    address: StoreAddress, check: Callable[[], None], phase: Callable[[str], None]
) -> Iterator[QdrantClient]:
    """Open the client of a collection.

    The folder of an embedded collection belongs to one client at a time; the next one waits for it.

    Args:
        address: Where the collection is.
        check: Called while waiting; may raise to abort.
        phase: Called before a wait.

    Raises:
        UserError: The folder is not one of Qdrant's, or the server refuses.
        ArtifactError: The server cannot be reached now, or the folder cannot be opened.
    """
    from qdrant_client import QdrantClient

    from mloc_prefect.artifacts.transfer.pinned_transport import PinnedSyncTransport

    if address.url is not None:
        # `cloud_inference` only says that texts to embed are sent as they are; the version of the server is not asked
        # for, since that request would come first and fail with a warning only.
        client = QdrantClient(
            url=address.url,
            api_key=address.api_key,
            timeout=int(max(1, address.timeout)),
            cloud_inference=True,
            check_compatibility=False,
            transport=PinnedSyncTransport(address.allowed.addresses),
        )
    elif address.path is None:
        client = QdrantClient(MEMORY)
    else:
        waited = _Wait(address.path, address.wait, check, phase)
        with _open_folder(address.path, waited) as client, store_errors(address):
            yield client
        return
    try:
        with store_errors(address):
            yield client
    finally:
        client.close()


@contextmanager
def store_errors(address: StoreAddress) -> Iterator[None]:
    """Convert errors of Qdrant's client to one line that names the server.

    Raises:
        UserError: The request is at fault.
        TransferError: The server cannot be reached now, or failed; another attempt may succeed.
        ArtifactError: The files of an embedded collection cannot be read or written.
    """
    from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

    try:
        yield
    except UnexpectedResponse as error:
        status = error.status_code or 0
        text = f"Qdrant at {address.shown} answered {status}: {_reason(error)}"
        if status in {401, 403}:
            raise UserError(f"{text}; check spec.qdrant.api_key") from None
        if is_temporary(status):
            raise TransferError(text, retryable=True) from None
        raise UserError(text) from None
    except ResponseHandlingException as error:
        raise _unreached(address, error.source) from None
    except QdrantException as error:  # status 429 with the seconds to wait
        wait = error.retry_after_s if isinstance(error, ResourceExhaustedResponse) else 0
        text = f"Qdrant at {address.shown} answered 429: {one_line(error)}"
        raise TransferError(text, retryable=True, asked_to_wait=max(0.0, float(wait))) from None
    except json.JSONDecodeError as error:
        raise _unreached(address, error) from None
    except ValueError as error:  # what the client itself refuses, such as the name of a collection
        raise UserError(f"Qdrant at {address.shown}: {one_line(error)}") from None
    except sqlite3.Error as error:
        raise ArtifactError(f"the collections in {address.shown} cannot be used: {one_line(error)}") from None


def _unreached(address: StoreAddress, cause: Exception) -> Exception:
    """Return the error for an answer that did not come, or was not one of Qdrant."""
    if isinstance(cause, ArtifactError):
        return user_error(cause)
    if isinstance(cause, ValueError):
        return UserError(f"what answers at {address.shown} is no Qdrant server, or one of another version")
    text = f"Qdrant at {address.shown} cannot be reached: {one_line(cause) or type(cause).__name__}"
    return TransferError(text, retryable=True)


def _reason(error: Any) -> str:
    """Return the server's own words, or the start of what it sent."""
    try:
        status = error.structured().get("status")
        said = status.get("error") if isinstance(status, dict) else None
    except (ValueError, AttributeError):
        said = None
    return one_line(said or error.reason_phrase or error.content.decode(errors="replace"), 300)


def _key(qdrant: SpecReader) -> str | None:
    """Return the key as it can be sent; h11 would show it in its error."""
    key = qdrant.text("api_key")
    if key and not can_be_sent(key):
        raise UserError(
            f"{qdrant.path}.api_key cannot be sent: it has a line break or other characters than those of one line of "
            "ASCII text"
        )
    return key


def _server(url: str, sources: SourceLookup) -> str:
    """Return the URL as the client calls it, after the check of its host and port."""
    try:
        parts = urlsplit(url)
        netloc = parts.netloc if parts.port else f"{parts.netloc.rstrip(':')}:{_PORT}"
    except ValueError:
        raise UserError("spec.qdrant.url is not a URL") from None
    if fault := address_fault(url):
        raise UserError(f"spec.qdrant.{fault[0]}; {fault[1]}")
    called = urlunsplit((parts.scheme, netloc, parts.path.rstrip("/"), "", ""))
    try:
        sources.allowed.check(called)
    except ArtifactError as error:
        raise UserError(f"spec.qdrant.url: {user_error(error)}") from None
    return called


def _folder(text: str, sources: SourceLookup) -> Path:
    """Return the folder of an embedded collection, which holds nothing but collections.

    Raises:
        UserError: It may not be used, or holds something else.
    """
    if local_path(text) is None:
        raise UserError(f"spec.qdrant.path: {shown_path(text)} is no folder of this machine")
    path, inputs = sources.local(text), sources.inputs
    if inputs is not None:
        if path.is_relative_to(inputs.results):
            raise UserError(
                "spec.qdrant.path: a collection is not kept among results; name a folder of MLOC_DATA_ROOTS"
            )
        try:  # what a task wrote is no store, wherever its results are
            path = replace(inputs, linked=False).admit_folder(path, text)
        except ArtifactError as error:
            raise user_error(error) from None
    if path.exists() and not path.is_dir():
        raise UserError(f"spec.qdrant.path: {path} is not a folder")
    if not path.is_dir() or not any(path.iterdir()) or (path / MARK).is_file():
        return path
    if not (path / _META).is_file():
        raise UserError(f"spec.qdrant.path: {path} holds other files, so it is no folder of collections")
    if inputs is not None:
        raise UserError(
            f"spec.qdrant.path: {path} was not made by a rag task, so submitted specs may not open it (its operator "
            f"allows that with an empty file {MARK} in it)"
        )
    return path


@contextmanager
def _open_folder(folder: Path, waited: _Wait) -> Iterator[QdrantClient]:
    """Open a folder that no other task has open.

    Qdrant reads the collections before it locks the folder, so a lock of ours is taken before.
    """
    lock = LockFile(folder / MARK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while not lock.acquire(seconds=0):
            waited.again(lock.holder())
    except OSError as error:
        raise UserError(f"spec.qdrant.path: {folder} cannot be used: {one_line(error)}") from None
    try:
        client = _client_of(folder, waited)
        try:
            yield client
        finally:
            client.close()
    finally:
        lock.release()


def _client_of(folder: Path, waited: _Wait) -> QdrantClient:
    from qdrant_client import QdrantClient

    meta = folder / _META
    if meta.is_file() and meta.stat().st_size == 0:  # its first writer was killed; there is no collection yet
        meta.unlink()
    while True:
        try:
            return QdrantClient(path=str(folder), force_disable_check_same_thread=True)
        except RuntimeError as error:
            if "already accessed" not in str(error):  # by a program that is none of ours
                raise
        except _TORN as error:
            text = f"spec.qdrant.path: {folder} cannot be opened: {one_line(error) or type(error).__name__}"
            raise UserError(text) from None
        waited.again()


class _Wait:
    """Waits for a folder that another task has open, and says so once.

    Args:
        folder: The folder.
        seconds: How long to wait.
        check: Called while waiting; may raise to abort.
        phase: Called before the first wait.
    """

    def __init__(self, folder: Path, seconds: float, check: Callable[[], None], phase: Callable[[str], None]) -> None:
        self._folder = folder
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._check = check
        self._phase: Callable[[str], None] | None = phase

    def again(self, holder: int | None = None) -> None:
        """Wait a little; raises if the task is cancelled.

        Args:
            holder: The process that has the folder, if it is known.

        Raises:
            TransferError: The time is over; another attempt may succeed.
        """
        self._check()
        if time.monotonic() > self._deadline:
            by = f"process {holder}" if holder else "another program"
            raise TransferError(
                f"spec.qdrant.path: {self._folder} is still in use by {by} after {self._seconds:g} s",
                retryable=True,
                hint="wait longer with spec.qdrant.waitSec, or use a Qdrant server, which serves many tasks at once",
            )
        if self._phase is not None:
            self._phase(f"waiting for another task that uses {self._folder}")
            self._phase = None
        time.sleep(_WAIT)
