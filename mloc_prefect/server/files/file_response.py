"""Downloads: files streamed with constant memory, with ranges and entity tags (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import asyncio
import mimetypes
import os
import re
from email.utils import formatdate
from typing import IO, TYPE_CHECKING
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse

from mloc_prefect.process.regular_file import open_inside
from mloc_prefect.server.files import digests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fastapi import Request

_CHUNK = 1 << 20
_RANGE = re.compile(r"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", re.IGNORECASE)


async def file_response(request: Request, directory: Path, path: Path) -> Response | None:
    """Return the answer with a file or the requested range of it; None if it is no longer a file of the task.

    Args:
        request: The request; its `Range`, `If-Range` and `If-None-Match` are applied.
        directory: Directory of the task.
        path: The file.
    """
    file = await asyncio.to_thread(open_inside, directory, path)
    if file is None:
        return None
    found = os.fstat(file.fileno())
    tag = await digests.etag(directory, path, found)
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": tag,
        "Last-Modified": formatdate(found.st_mtime, usegmt=True),
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(path.name, safe='')}",
        "X-Content-Type-Options": "nosniff",
    }
    if _matches(request.headers.get("if-none-match"), tag):
        file.close()
        return Response(status_code=304, headers=headers)
    kind = mimetypes.guess_type(path.name)[0] or "text/plain"
    size = found.st_size
    part = _part(request, size, tag, headers["Last-Modified"])
    if part is None:
        start, length, status = 0, size, 200
    elif part[0] >= size:
        file.close()
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
    else:
        start, length, status = part[0], part[1] - part[0] + 1, 206
        headers["Content-Range"] = f"bytes {part[0]}-{part[1]}/{size}"
    headers["Content-Length"] = str(length)
    if request.method == "HEAD":
        file.close()
        return Response(status_code=status, headers=headers, media_type=kind)
    return StreamingResponse(file_pieces(file, start, length), status_code=status, headers=headers, media_type=kind)


async def file_pieces(file: IO[bytes], start: int, length: int) -> AsyncIterator[bytes]:
    """Yield a part of a file and close it; the next piece is read while the previous one is sent."""
    with file:
        reading = asyncio.create_task(asyncio.to_thread(_read, file, start, min(_CHUNK, length)))
        try:
            while length > 0:
                piece = await reading
                if not piece:
                    raise OSError("the file was truncated while it was sent")
                start, length = start + len(piece), length - len(piece)
                reading = asyncio.create_task(asyncio.to_thread(_read, file, start, min(_CHUNK, length)))
                yield piece
        finally:
            await asyncio.wait([reading])  # the thread must not read from a closed file


def _read(file: IO[bytes], start: int, size: int) -> bytes:
    return os.pread(file.fileno(), size, start) if size > 0 else b""


def _part(request: Request, size: int, tag: str, changed: str) -> tuple[int, int] | None:
    """Return first and last byte of the requested range; None = the whole file. The first may lie beyond the end."""
    wanted = _RANGE.fullmatch(request.headers.get("range") or "")
    condition = request.headers.get("if-range")
    if wanted is None or (condition is not None and not _unchanged(condition.strip(), tag, changed)):
        return None
    first, last = wanted[1][:20], wanted[2][:20]
    if not first:
        if not last:
            return None
        return (max(size - int(last), 0), size - 1) if int(last) else (size, size)
    start, end = int(first), min(int(last), size - 1) if last else size - 1
    if last and int(last) < start:
        return None
    return start, end


def _unchanged(condition: str, tag: str, changed: str) -> bool:
    return (condition == tag and not tag.startswith("W/")) or condition == changed


def _matches(header: str | None, tag: str) -> bool:
    if header is None:
        return False
    tags = {one.strip().removeprefix("W/") for one in header.split(",")}
    return "*" in tags or tag.removeprefix("W/") in tags
