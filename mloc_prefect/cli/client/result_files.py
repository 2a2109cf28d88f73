"""Saves results to disk: files are streamed, checked by size and SHA-256, and appear only when complete."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.cli.client.endpoint_client import quoted
from mloc_prefect.cli.client.task_lookup import label, short
from mloc_prefect.errors import ArtifactError, UsageError
from mloc_prefect.process.atomic_file import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import httpx

    from mloc_prefect.cli.client.endpoint_client import EndpointClient
    from mloc_prefect.cli.client.task_lookup import Record

_RESULT, _MANIFEST = "responses.json", "manifest.json"
_CHUNK = 1 << 20
_SHA256_DIGITS = 64


def save(endpoint: EndpointClient, records: Sequence[Record], target: Path) -> Iterator[Path]:
    """Save the results of tasks and yield the path of each file; several tasks get a directory each.

    Raises:
        UsageError: No task has a result yet.
        ArtifactError: A file cannot be written, or does not match its size or SHA-256.
    """
    found = False
    for record, directory in _directories(records, target):
        for path in _save_task(endpoint, record, directory):
            found = True
            yield path
    if not found:
        states = ", ".join(sorted({str(record["status"]) for record in records}))
        raise UsageError("there is no result yet", hint=f"the state is {states}; `mloc watch` waits for the end")


def _directories(records: Sequence[Record], target: Path) -> list[tuple[Record, Path]]:
    if len(records) == 1:
        return [(records[0], target)]
    names = [label(record) for record in records]
    found = []
    for record, name in zip(records, names, strict=True):
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name).lstrip(".") or short(record["task_id"])
        found.append((record, target / (safe if names.count(name) == 1 else f"{safe}-{short(record['task_id'])}")))
    return found


def _save_task(endpoint: EndpointClient, record: Record, target: Path) -> Iterator[Path]:
    base = f"/api/v1/results/{quoted(record['task_id'])}"
    if endpoint.find(base) is None:
        return
    yield _download(endpoint, base, target / _RESULT, None)
    manifest = endpoint.find(f"{base}/files/{_MANIFEST}")
    for name, sha256 in _files(manifest):
        yield _download(endpoint, f"{base}/files/{quoted(name)}", target / name, sha256)


def _files(manifest: Any) -> Iterator[tuple[str, str | None]]:
    """Yield name and SHA-256 of the files in a manifest that the endpoint serves: those with one path component."""
    entries = manifest.get("entries", []) if isinstance(manifest, dict) else []
    for entry in entries:
        path = str(entry.get("path", "")).removeprefix("artifacts/")
        if entry.get("status") == "present" and entry.get("sha256") and path != _RESULT and _plain(path):
            yield path, str(entry["sha256"])


def _plain(name: str) -> bool:
    return bool(name) and name not in {".", ".."} and "/" not in name and "\0" not in name


def _download(endpoint: EndpointClient, path: str, target: Path, sha256: str | None) -> Path:
    """Stream one file to `target`.

    Args:
        endpoint: The endpoint.
        path: Path of the URL.
        target: The file to write.
        sha256: Digest in the manifest, or None. The entity tag of the response takes precedence if it is a digest: a
            file may have been uploaded again after the manifest was written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with endpoint.stream(path) as answer, replacing(target) as file:
            digest, size = hashlib.sha256(), 0
            for chunk in answer.iter_bytes(_CHUNK):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            _verify(target.name, answer, size, digest.hexdigest(), sha256)
    except OSError as error:
        raise ArtifactError(
            f"cannot write {target}: {error.strerror or error}", hint="choose another --output"
        ) from None
    return target


def _verify(name: str, answer: httpx.Response, size: int, digest: str, sha256: str | None) -> None:
    length = answer.headers.get("content-length")
    if length and "content-encoding" not in answer.headers and int(length) != size:
        raise ArtifactError(f"{name} has {size} bytes instead of {length}: it was cut off", hint="try again")
    tag = answer.headers.get("etag", "").strip('"')  # a weak tag starts with `W/` and is not a digest
    known = tag if len(tag) == _SHA256_DIGITS else sha256
    if known and known != digest:
        raise ArtifactError(
            f"{name} has SHA-256 {digest}, but the endpoint says {known}",
            hint="try again; the file may have changed",
        )
