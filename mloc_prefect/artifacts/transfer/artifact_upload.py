"""Uploads the files that a result names (archives of models, exports) to its http destination. [protocol 4.8].

The target is `<destination url>/<task id>/files`, with one multipart part `file` that is streamed from the disk. A file
that exists there with the same digest is not sent again: the digest is the entity tag of our endpoint, which also finds
the file by itself when it shares the results root.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import uuid4

from mloc_prefect.artifacts import atomic
from mloc_prefect.artifacts.transfer.outgoing import (
    LONGEST_WAIT,
    DeliveryError,
    is_temporary,
    ready_url,
    shown_url,
)
from mloc_prefect.errors import reason
from mloc_prefect.process.backoff import Backoff, retry_after

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import httpx

    from mloc_prefect.artifacts.transfer.delivery import HttpDestination
    from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts

_KEYS = ("final_model", "final_lora")
_TIMEOUT = 30.0  # seconds without progress, as in MLOC
_TRIES = 4
_WAITS = Backoff(first=0.5)
_STILL_WRITING = 409  # the endpoint still writes an earlier try of ours
_CHUNK = 1 << 20
_LARGE = 16 << 20  # bytes; a larger upload resumes where it broke
READABLE = 64 << 20  # bytes; a larger result gets no URLs
_sleep = asyncio.sleep


async def upload_files(
    result: Path,
    destination: HttpDestination,
    *,
    task_id: str,
    allowed: AllowedHosts,
    folder: Path | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> list[str]:
    """Upload the archives of models and the export that a result names, and write their URLs into the result.

    As in MLOC, a destination that refuses the file (it may be another service than an MLOC endpoint) only leaves the
    URL out; the reason is then in `<name>_archive_error`, or in `error` of `jsonl_export`.

    Args:
        result: File with the result object; rewritten when it names such a file.
        destination: Destination of results.
        task_id: Id of the task.
        allowed: Hosts that may be called.
        folder: Directory of the task: files elsewhere are not sent; None: all are.
        transport: Replaces the network in tests.

    Returns:
        What was refused, as text.

    Raises:
        DeliveryError: The destination cannot be reached, or fails; another try may succeed.
    """
    if result.stat().st_size > READABLE:
        return []
    content = await asyncio.to_thread(atomic.read_json, result)
    if not isinstance(content, dict):
        return []
    problems: list[str] = []
    for holder, start in named_files(content):
        path = Path(str(holder.get(f"{start}path") or ""))
        if holder.get(f"{start}url") or not path.is_file() or not is_own(path, folder):
            continue
        try:
            sha256 = holder.get(f"{start}sha256")
            url = await upload(path, destination, task_id, allowed, sha256=sha256, transport=transport)
        except DeliveryError as error:
            if error.retryable:
                raise
            problems.append(error.message)
            holder[f"{start}error"] = error.message
        else:
            holder[f"{start}url"] = url
            holder.pop(f"{start}error", None)
        await asyncio.to_thread(atomic.write_json, result, content, indent=None)
    return problems


async def upload(
    path: Path,
    destination: HttpDestination,
    task_id: str,
    allowed: AllowedHosts,
    *,
    sha256: str | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> str:
    """Upload one file and return its URL.

    Args:
        path: The file.
        destination: Destination of results; its headers are sent, except those that describe a body.
        task_id: Id of the task.
        allowed: Hosts that may be called.
        sha256: Digest of the file, if known; the same file is then not sent twice.
        transport: Replaces the network in tests.

    Raises:
        DeliveryError: The file was not accepted.
    """
    import httpx

    from mloc_prefect.artifacts.transfer.pinned_transport import PinnedTransport

    ready = ready_url(destination.url)
    folder = f"{ready.url.rstrip('/')}/{quote(task_id, safe='')}/files"
    url = f"{folder}/{quote(path.name, safe='')}"
    allowed.check(folder)
    headers = {k: v for k, v in {**ready.headers, **destination.headers}.items() if k.lower() != "content-type"}
    timeout = httpx.Timeout(max(_TIMEOUT, destination.timeout))
    sender = transport or PinnedTransport(allowed.addresses)
    async with httpx.AsyncClient(timeout=timeout, follow_redirects=False, transport=sender) as client:
        for left, pause in zip(range(_TRIES, 0, -1), _WAITS, strict=False):
            try:
                if sha256 and await _is_uploaded(client, url, headers, sha256):
                    return url
                if not (sha256 and await _send_rest(client, url, headers, path, sha256)):
                    _raise_for_status(await client.post(folder, **_form(path, headers)), path, folder)
            except (httpx.HTTPError, OSError) as error:
                text = f"Failed to upload {path.name} to {shown_url(folder)}: {reason(error)}"
                problem = DeliveryError(text, retryable=True)
            except DeliveryError as error:
                problem = error
            else:
                return url
            if left == 1 or not problem.retryable:
                raise problem
            await _sleep(max(pause, min(problem.asked_to_wait, LONGEST_WAIT)))
    raise AssertionError("unreachable")


def is_own(path: Path, folder: Path | None) -> bool:
    """Return whether a file that a result names lies in the directory of its task, once links are followed."""
    return folder is None or path.resolve().is_relative_to(folder.resolve())


def named_files(content: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Return where the result names files: a mapping, and the prefix of its keys `path`, `url`, `sha256`, `error`."""
    places = [(content, f"{name}_archive_") for name in _KEYS]
    result = content.get("result")
    for holder in (content, result.get("merged") if isinstance(result, dict) else None):  # the latter of a sharded task
        export = holder.get("jsonl_export") if isinstance(holder, dict) else None
        places += [(export, "")] if isinstance(export, dict) else []
    return places


async def _is_uploaded(client: httpx.AsyncClient, url: str, headers: Mapping[str, str], sha256: str) -> bool:
    answer = await client.head(url, headers={**headers, "If-None-Match": f'"{sha256}"'})
    return answer.status_code == 304 or answer.headers.get("etag", "").strip('"') == sha256


async def _send_rest(client: httpx.AsyncClient, url: str, headers: Mapping[str, str], path: Path, sha256: str) -> bool:
    """Send the missing rest of a large file; return whether the endpoint can resume uploads, as only ours can.

    Raises:
        DeliveryError: The endpoint refuses the file.
    """
    size = path.stat().st_size
    if size < _LARGE:
        return False
    own = {**headers, "Upload-Length": str(size), "Upload-Digest": sha256}
    asked = await client.patch(url, headers={**own, "Upload-Offset": "0"})
    offset = asked.headers.get("Upload-Offset", "")
    if asked.status_code not in {200, 409} or not offset.isdecimal():
        return False
    start = int(offset)
    own |= {"Upload-Offset": offset, "Content-Length": str(size - start)}
    _raise_for_status(await client.patch(url, headers=own, content=_chunks(path, start)), path, url)
    return True


async def _chunks(path: Path, start: int = 0) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk


def _raise_for_status(answer: httpx.Response, path: Path, url: str) -> None:
    code = answer.status_code
    if 200 <= code < 300:
        return
    raise DeliveryError(
        f"Failed to upload {path.name} to {shown_url(url)}: status {code}: {answer.text[:200]}",
        retryable=is_temporary(code) or code == _STILL_WRITING,
        asked_to_wait=retry_after(answer.headers.get("Retry-After")),
    )


def _form(path: Path, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return headers and body of a multipart form with one file; its length is known before it is read."""
    boundary = uuid4().hex
    name = path.name.replace("\\", "\\\\").replace('"', '\\"')
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        f"Content-Type: application/zip\r\n\r\n"
    ).encode()
    tail = f"\r\n--{boundary}--\r\n".encode()
    length = len(head) + path.stat().st_size + len(tail)

    async def body() -> AsyncIterator[bytes]:
        yield head
        async for chunk in _chunks(path):
            yield chunk
        yield tail

    own = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Content-Length": str(length)}
    return {"headers": {**headers, **own}, "content": body()}
