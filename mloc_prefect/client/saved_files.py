"""Saves results to disk: files are streamed, checked by size and SHA-256, and appear only when complete."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from mloc_prefect.client.client_steps import AskStep, GiveStep, SaveFileStep
from mloc_prefect.client.endpoint_replies import json_of
from mloc_prefect.client.errors import NotFoundError
from mloc_prefect.client.task_lookup import find_tasks, label, quoted, short
from mloc_prefect.errors import ArtifactError, UsageError
from mloc_prefect.process.atomic_file import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import httpx

    from mloc_prefect.client.client_steps import Steps
    from mloc_prefect.client.endpoint_address import EndpointAddress
    from mloc_prefect.client.task_lookup import Record

CHUNK = 1 << 20
_RESULT, _MANIFEST = "responses.json", "manifest.json"
_SHA256_DIGITS = 64


def save_results(address: EndpointAddress, wanted: str, folder: Path) -> Steps[None]:
    """Save the results of a task, or of all tasks of a submission, and give the path of each file.

    Raises:
        UsageError: No task has a result yet.
        ArtifactError: A file cannot be written, or does not match its size or SHA-256.
    """
    records = yield from find_tasks(address, wanted)
    found = False
    for record, target in _directories(records, folder):
        found = (yield from _save_task(address, record, target)) or found
    if not found:
        states = ", ".join(sorted({str(record["status"]) for record in records}))
        raise UsageError("there is no result yet", hint=f"the state is {states}; `mloc watch` waits for the end")


class IncomingFile:
    """A file that arrives piece by piece.

    Args:
        file: Where it is written.
        name: Its name in messages.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._name = file, name
        self._digest, self._size = hashlib.sha256(), 0

    def take(self, data: bytes) -> None:
        """Write the next bytes."""
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)

    def verify(self, headers: Mapping[str, str], sha256: str | None) -> None:
        """Check it once it is complete.

        Args:
            headers: Headers of the response.
            sha256: Digest in the manifest, or None. The entity tag of the response takes precedence if it is a digest:
                a file may have been uploaded again after the manifest was written.

        Raises:
            ArtifactError: It has another size, or another digest.
        """
        length = headers.get("content-length")
        if length and "content-encoding" not in headers and int(length) != self._size:
            text = f"{self._name} has {self._size} bytes instead of {length}: it was cut off"
            raise ArtifactError(text, hint="try again")
        tag = headers.get("etag", "").strip('"')  # a weak tag starts with `W/` and is not a digest
        known, digest = tag if len(tag) == _SHA256_DIGITS else sha256, self._digest.hexdigest()
        if known and known != digest:
            text = f"{self._name} has SHA-256 {digest}, but the endpoint says {known}"
            raise ArtifactError(text, hint="try again; the file may have changed")


@contextmanager
def incoming(target: Path) -> Iterator[IncomingFile]:
    """Open a file that takes the place of `target` when the block ends without an error.

    Raises:
        ArtifactError: It cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as file:
            yield IncomingFile(file, target.name)
    except OSError as error:
        raise ArtifactError(f"cannot write {target}: {error.strerror or error}", hint="choose another folder") from None


@contextmanager
def outgoing(file: Path) -> Iterator[IO[bytes]]:
    """Open a file to upload.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        opened = file.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror or error}") from None
    with opened:
        yield opened


def _directories(records: Sequence[Record], folder: Path) -> list[tuple[Record, Path]]:
    """Return where each task is saved: several tasks get a directory each."""
    if len(records) == 1:
        return [(records[0], folder)]
    names = [label(record) for record in records]
    found = []
    for record, name in zip(records, names, strict=True):
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name).lstrip(".") or short(record["task_id"])
        found.append((record, folder / (safe if names.count(name) == 1 else f"{safe}-{short(record['task_id'])}")))
    return found


def _save_task(address: EndpointAddress, record: Record, target: Path) -> Steps[bool]:
    base = f"/api/v1/results/{quoted(record['task_id'])}"
    try:
        yield SaveFileStep(base, target / _RESULT, None)
    except NotFoundError:
        return False
    yield GiveStep(target / _RESULT)
    manifest: httpx.Response = yield AskStep("GET", f"{base}/files/{_MANIFEST}", accepted=(404,))
    for name, sha256 in _files(None if manifest.status_code == 404 else json_of(address, manifest)):
        yield SaveFileStep(f"{base}/files/{quoted(name)}", target / name, sha256)
        yield GiveStep(target / name)
    return True


def _files(manifest: Any) -> Iterator[tuple[str, str | None]]:
    """Yield name and SHA-256 of the files in a manifest that the endpoint serves: those with one path component."""
    entries = manifest.get("entries", []) if isinstance(manifest, dict) else []
    for entry in entries:
        path = str(entry.get("path", "")).removeprefix("artifacts/")
        if entry.get("status") == "present" and entry.get("sha256") and path != _RESULT and _plain(path):
            yield path, str(entry["sha256"])


def _plain(name: str) -> bool:
    return bool(name) and name not in {".", ".."} and "/" not in name and "\0" not in name
