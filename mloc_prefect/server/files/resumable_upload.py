"""Resumable uploads: a PATCH sends the rest of a file that is identified by its digest. Not part of protocol 1.5.

Received data is stored next to the target until it is complete and has the digest. The sender first asks, with an empty
body, how much has been received.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from starlette.requests import ClientDisconnect

from mloc_prefect.server.files.multipart_upload import publish, too_large, upload_problems
from mloc_prefect.server.files.task_files import place_of_upload
from mloc_prefect.server.responses import ErrorResponse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import Request

OFFSET, LENGTH, DIGEST = "Upload-Offset", "Upload-Length", "Upload-Digest"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"\d{1,18}")
_BLOCK = 4 << 20  # bytes per write


class UploadPiece(NamedTuple):
    """The headers of a request.

    Attributes:
        offset: Bytes that the sender believes to have been received.
        length: Bytes of the whole file.
        sha256: Digest of the whole file.
    """

    offset: int
    length: int
    sha256: str


async def receive_piece(request: Request, directory: Path, name: str, *, most: int) -> int:
    """Receive the rest of a file, and move it to its target when it is complete; return the bytes received so far.

    Args:
        request: The request with headers and body.
        directory: Directory of the task.
        name: Name of the file.
        most: Maximum size of the file in bytes; 0 = no limit.

    Raises:
        ErrorResponse: 400 for invalid headers, or an interrupted body (received data is kept); 409 with the correct
            offset for a wrong one, or while another request sends the same file; 413; 507; 422 for a wrong digest.
    """
    piece = _piece(request)
    if most and piece.length > most:
        raise too_large(most)
    target = place_of_upload(directory, name)
    with upload_problems(), _opened(target, piece) as file:
        received = os.fstat(file.fileno()).st_size
        if received != piece.offset:
            raise ErrorResponse(409, f"{received} bytes have been received", headers={OFFSET: str(received)})
        sink = _Rest(file, received, await asyncio.to_thread(_hashed, file))
        await _take(request, sink, piece)
        if sink.size == piece.length:
            await asyncio.to_thread(_publish, sink, directory, target, piece)
        return sink.size


def _piece(request: Request) -> UploadPiece:
    texts = [request.headers.get(name, "").strip() for name in (OFFSET, LENGTH, DIGEST)]
    if not (_NUMBER.fullmatch(texts[0]) and _NUMBER.fullmatch(texts[1]) and _SHA256.fullmatch(texts[2])):
        raise ErrorResponse(400, f"{OFFSET}, {LENGTH} (bytes) and {DIGEST} (SHA-256 of the whole file) are required")
    piece = UploadPiece(int(texts[0]), int(texts[1]), texts[2])
    if piece.offset > piece.length:
        raise ErrorResponse(400, f"{OFFSET} is beyond {LENGTH}")
    return piece


@contextmanager
def _opened(target: Path, piece: UploadPiece) -> Iterator[IO[bytes]]:
    """Open the received part of a file for one sender at a time; remove parts of other files of that name."""
    short = target.name.encode()[:80].decode("utf-8", "ignore")
    part = target.with_name(f".{short}.{piece.sha256[:32]}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    for other in part.parent.glob(f".{_literal(short)}.{'[0-9a-f]' * 32}.part"):
        if other != part:
            _remove_part(other)
    with part.open("ab", buffering=0) as file:
        if not _lock(file):
            raise ErrorResponse(409, "another request is sending this file", headers={"Retry-After": "2"})
        try:
            yield file
        finally:
            if os.fstat(file.fileno()).st_size == 0 and _in_place(file):  # the request only asked for the offset
                part.unlink(missing_ok=True)


def _remove_part(part: Path) -> None:
    """Remove a received part, unless a request is sending it."""
    with suppress(FileNotFoundError), part.open("r+b") as file:
        if _lock(file):
            part.unlink(missing_ok=True)


def _lock(file: IO[bytes]) -> bool:
    """Lock a part, which allows to move or remove it; return False if it is locked or no longer in its place."""
    # The lock is on the part itself, not on a separate file: only its single writer may move or remove it.
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return _in_place(file)


def _in_place(file: IO[bytes]) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), _path(file).stat())
    return False


def _literal(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)


class _Rest:
    """Writes and hashes received data in threads.

    Args:
        file: The part, opened for appending.
        size: Its size.
        sha: The hash of its content.
    """

    def __init__(self, file: IO[bytes], size: int, sha: hashlib._Hash) -> None:
        self.file, self.size, self.sha = file, size, sha

    async def add(self, held: list[bytes]) -> None:
        """Write blocks. On a nearly full disk a block may be written in part; the next call raises the error."""
        data = b"".join(held)
        await asyncio.gather(asyncio.to_thread(self._write, data), asyncio.to_thread(self.sha.update, data))

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            done = self.file.write(rest) or 0
            self.size, rest = self.size + done, rest[done:]


async def _take(request: Request, sink: _Rest, piece: UploadPiece) -> None:
    """Write the body as it arrives; if it is interrupted, keep what was received."""
    held, size = list[bytes](), 0
    broken = False
    try:
        async for chunk in request.stream():
            held.append(chunk)
            size += len(chunk)
            if sink.size + size > piece.length:
                raise ErrorResponse(400, f"the body is longer than {LENGTH} says")
            if size >= _BLOCK:
                await sink.add(held)
                held, size = [], 0
    except ClientDisconnect:
        broken = True
    await sink.add(held)
    if broken:
        raise ErrorResponse(400, "the upload ended before its file was complete", headers={OFFSET: str(sink.size)})


def _hashed(file: IO[bytes]) -> hashlib._Hash:
    sha = hashlib.sha256()
    with _path(file).open("rb") as before:
        while chunk := before.read(_BLOCK):
            sha.update(chunk)
    return sha


def _publish(sink: _Rest, directory: Path, target: Path, piece: UploadPiece) -> None:
    part, found = _path(sink.file), sink.sha.hexdigest()
    if found != piece.sha256:
        part.unlink(missing_ok=True)
        raise ErrorResponse(
            422, f"the received file has sha256 {found} instead of {piece.sha256}; send the whole file again"
        )
    try:
        publish(sink.file, part, target, directory, found)
    except FileNotFoundError:  # garbage collection of results ignores our lock
        text = "the received data was removed meanwhile; send the whole file again"
        raise ErrorResponse(409, text, headers={OFFSET: "0"}) from None


def _path(file: IO[bytes]) -> Path:
    return Path(os.fsdecode(file.name))
