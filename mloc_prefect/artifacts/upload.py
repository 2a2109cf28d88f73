"""Files that a result names (archives of models, exports) go to the http destination beside it. [protocol 4.8].

`<destination url>/<task id>/files`, one multipart part `file`, streamed from the disk. What is there already under the
same digest is not sent again: the digest is the entity tag of our endpoint, which also finds the file by itself when
it shares our results root.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import uuid4

from mloc_prefect.artifacts import atomic
from mloc_prefect.artifacts.delivery import DeliveryError, shown_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import httpx

    from mloc_prefect.artifacts.delivery import AllowedHosts, HttpDestination

_KEYS = ("final_model", "final_lora")
_TIMEOUT = 30.0  # seconds without progress; MLOC's own for uploads
_TRIES = 4
_PAUSE = 0.5
_WORTH_A_RETRY = frozenset({408, 409, 425, 429})  # 409: an earlier try of ours is still being put away
_CHUNK = 1 << 20
_LARGE = 16 << 20  # bytes; an upload of more goes on where it broke
READABLE = 64 << 20  # bytes; of larger results only the file is kept, without a URL
_sleep = asyncio.sleep


async def upload_files(
    result: Path,
    destination: HttpDestination,
    *,
    task_id: str,
    allowed: AllowedHosts,
    transport: httpx.AsyncBaseTransport | None = None,
) -> list[str]:
    """Upload the archives of models and the export that a result names, and write their URLs into it.

    As in MLOC a destination that refuses the file (it may be some other service than MLOC's endpoint) only leaves the
    URL out; the result then has the reason under `<name>_archive_error`, or `error` of `jsonl_export`.

    Args:
        result: File with the result object; rewritten when it names such a file.
        destination: Where results go.
        task_id: Id of the task.
        allowed: Hosts that may be called.
        transport: Takes the place of the network (tests).

    Returns:
        What was refused, in words.

    Raises:
        DeliveryError: The destination cannot be reached, or fails; another try may go better.
    """
    if result.stat().st_size > READABLE:
        return []
    content = await asyncio.to_thread(atomic.read_json, result)
    if not isinstance(content, dict):
        return []
    problems: list[str] = []
    for holder, start in named_files(content):
        path = holder.get(f"{start}path")
        if not path or holder.get(f"{start}url") or not Path(str(path)).is_file():
            continue
        try:
            sha256 = holder.get(f"{start}sha256")
            url = await upload(Path(str(path)), destination, task_id, allowed, sha256=sha256, transport=transport)
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
        destination: Where results go; its headers are sent, but for those that describe a body.
        task_id: Id of the task.
        allowed: Hosts that may be called.
        sha256: Digest of the file, when it is known; the same file is then not sent twice.
        transport: Takes the place of the network (tests).

    Raises:
        DeliveryError: It was not taken.
    """
    import httpx

    folder = f"{destination.url.rstrip('/')}/{quote(task_id, safe='')}/files"
    url = f"{folder}/{quote(path.name, safe='')}"
    allowed.check(folder)
    headers = {k: v for k, v in destination.headers.items() if k.lower() != "content-type"}
    timeout = httpx.Timeout(max(_TIMEOUT, destination.timeout))
    pause = _PAUSE
    async with httpx.AsyncClient(timeout=timeout, follow_redirects=False, transport=transport) as client:
        for left in range(_TRIES, 0, -1):
            try:
                if sha256 and await _is_there(client, url, headers, sha256):
                    return url
                if not (sha256 and await _send_rest(client, url, headers, path, sha256)):
                    _judge(await client.post(folder, **_form(path, headers)), path, folder)
            except (httpx.HTTPError, OSError) as error:
                text = str(error) or type(error).__name__
                problem = DeliveryError(f"Failed to upload {path.name} to {shown_url(folder)}: {text}", retryable=True)
            except DeliveryError as error:
                problem = error
            else:
                return url
            if left == 1 or not problem.retryable:
                raise problem
            await _sleep(pause)
            pause *= 2
    raise AssertionError("unreachable")


def named_files(content: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Return where the result names files: a mapping, and how its keys `path`, `url`, `sha256`, `error` start."""
    places = [(content, f"{name}_archive_") for name in _KEYS]
    result = content.get("result")
    for holder in (content, result.get("merged") if isinstance(result, dict) else None):  # the latter of a divided task
        export = holder.get("jsonl_export") if isinstance(holder, dict) else None
        places += [(export, "")] if isinstance(export, dict) else []
    return places


async def _is_there(client: httpx.AsyncClient, url: str, headers: Mapping[str, str], sha256: str) -> bool:
    answer = await client.head(url, headers={**headers, "If-None-Match": f'"{sha256}"'})
    return answer.status_code == 304 or answer.headers.get("etag", "").strip('"') == sha256


async def _send_rest(client: httpx.AsyncClient, url: str, headers: Mapping[str, str], path: Path, sha256: str) -> bool:
    """Send what the endpoint lacks of a large file; return whether it takes pieces at all, as only ours does.

    Raises:
        DeliveryError: It refuses the file.
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
    _judge(await client.patch(url, headers=own, content=_pieces(path, start)), path, url)
    return True


async def _pieces(path: Path, start: int = 0) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk


def _judge(answer: httpx.Response, path: Path, url: str) -> None:
    code = answer.status_code
    if 200 <= code < 300:
        return
    raise DeliveryError(
        f"Failed to upload {path.name} to {shown_url(url)}: status {code}: {answer.text[:200]}",
        retryable=code >= 500 or code in _WORTH_A_RETRY,
    )


def _form(path: Path, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return headers and body of a multipart form with one file, whose length is known before it is read."""
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
        async for chunk in _pieces(path):
            yield chunk
        yield tail

    own = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Content-Length": str(length)}
    return {"headers": {**headers, **own}, "content": body()}
