"""Uploads that go on where they broke: the rest of a file, named by its digest, in a PATCH. Protocol 1.5 has no such.

What came lies beside the file's place until all of it is there and has the digest. Whoever sends asks first, with an
empty body, how much is there.
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

from mloc_prefect.server import digests
from mloc_prefect.server.places import place_of_upload
from mloc_prefect.server.replies import Problem
from mloc_prefect.server.upload import disk_problems, sync_directory, too_large

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import Request

OFFSET, LENGTH, DIGEST = "Upload-Offset", "Upload-Length", "Upload-Digest"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"\d{1,18}")
_BLOCK = 4 << 20  # bytes that are written at once


class Piece(NamedTuple):
    """What the headers say.

    Attributes:
        offset: Bytes that the sender takes to be there.
        length: Bytes of the whole file.
        sha256: Digest of the whole file.
    """

    offset: int
    length: int
    sha256: str


async def receive_piece(request: Request, directory: Path, name: str, *, most: int) -> int:
    """Take in the rest of a file, and put it into its place when all of it is there; return how much is there.

    Args:
        request: Its headers and body.
        directory: Directory of the task.
        name: Name of the file.
        most: Largest file, bytes; 0 = no limit.

    Raises:
        Problem: 400 for bad headers, or a body that broke off (what came is kept); 409 with the true offset when it is
            another, or while somebody else sends the same file; 413, 507; 422 when the whole has another digest.
    """
    piece = _piece(request)
    if most and piece.length > most:
        raise too_large(most)
    target = place_of_upload(directory, name)
    with disk_problems(), _opened(target, piece) as file:
        there = os.fstat(file.fileno()).st_size
        if there != piece.offset:
            raise Problem(409, f"{there} bytes are there", headers={OFFSET: str(there)})
        sink = _Rest(file, there, await asyncio.to_thread(_hashed, file))
        await _take(request, sink, piece)
        if sink.size == piece.length:
            await asyncio.to_thread(_publish, sink, directory, target, piece)
        return sink.size


def _piece(request: Request) -> Piece:
    texts = [request.headers.get(name, "").strip() for name in (OFFSET, LENGTH, DIGEST)]
    if not (_NUMBER.fullmatch(texts[0]) and _NUMBER.fullmatch(texts[1]) and _SHA256.fullmatch(texts[2])):
        raise Problem(400, f"{OFFSET}, {LENGTH} (bytes) and {DIGEST} (SHA-256 of the whole file) are required")
    piece = Piece(int(texts[0]), int(texts[1]), texts[2])
    if piece.offset > piece.length:
        raise Problem(400, f"{OFFSET} is beyond {LENGTH}")
    return piece


@contextmanager
def _opened(target: Path, piece: Piece) -> Iterator[IO[bytes]]:
    """Open what is there of the file, for one sender at a time; what came of another file of that name goes away."""
    short = target.name.encode()[:80].decode("utf-8", "ignore")
    part = target.with_name(f".{short}.{piece.sha256[:32]}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    for other in part.parent.glob(f".{_literal(short)}.{'[0-9a-f]' * 32}.part"):
        if other != part:
            _forget(other)
    with part.open("ab", buffering=0) as file:
        if not _taken(file):
            raise Problem(409, "somebody else is sending this file", headers={"Retry-After": "2"})
        try:
            yield file
        finally:
            if os.fstat(file.fileno()).st_size == 0 and _in_place(file):  # somebody only asked
                part.unlink(missing_ok=True)


def _forget(part: Path) -> None:
    """Remove what came of a file, unless somebody is just sending it."""
    with suppress(FileNotFoundError), part.open("r+b") as file:
        if _taken(file):
            part.unlink(missing_ok=True)


def _taken(file: IO[bytes]) -> bool:
    """Return whether the file is ours alone now, and still in its place: only who has it so may move or remove it."""
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
    """Writes and hashes what comes, both in threads.

    Args:
        file: Opened to append to.
        size: Bytes that it has.
        sha: Hash of these.
    """

    def __init__(self, file: IO[bytes], size: int, sha: hashlib._Hash) -> None:
        self.file, self.size, self.sha = file, size, sha

    async def add(self, held: list[bytes]) -> None:
        """Write blocks; one that is written in part, on a disk that is nearly full, fails at the next call."""
        data = b"".join(held)
        await asyncio.gather(asyncio.to_thread(self._write, data), asyncio.to_thread(self.sha.update, data))

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            done = self.file.write(rest) or 0
            self.size, rest = self.size + done, rest[done:]


async def _take(request: Request, sink: _Rest, piece: Piece) -> None:
    """Write the body as it comes, and keep what came when it breaks off."""
    held, size = list[bytes](), 0
    broken = False
    try:
        async for chunk in request.stream():
            held.append(chunk)
            size += len(chunk)
            if sink.size + size > piece.length:
                raise Problem(400, f"the body is longer than {LENGTH} says")
            if size >= _BLOCK:
                await sink.add(held)
                held, size = [], 0
    except ClientDisconnect:
        broken = True
    await sink.add(held)
    if broken:
        raise Problem(400, "the upload ended before its file was complete", headers={OFFSET: str(sink.size)})


def _hashed(file: IO[bytes]) -> hashlib._Hash:
    sha = hashlib.sha256()
    with _path(file).open("rb") as before:
        while chunk := before.read(_BLOCK):
            sha.update(chunk)
    return sha


def _publish(sink: _Rest, directory: Path, target: Path, piece: Piece) -> None:
    part, found = _path(sink.file), sink.sha.hexdigest()
    if found != piece.sha256:
        part.unlink(missing_ok=True)
        raise Problem(422, f"the sha256 of what came is {found}, wanted {piece.sha256}; all of it has to be sent again")
    os.fsync(sink.file.fileno())
    state = os.fstat(sink.file.fileno())
    try:
        part.replace(target)
    except FileNotFoundError:  # whoever cleans up the results knows nothing of our lock
        text = "what came was removed meanwhile; all of it has to be sent again"
        raise Problem(409, text, headers={OFFSET: "0"}) from None
    sync_directory(target.parent)
    digests.remember(directory, target, state, found)


def _path(file: IO[bytes]) -> Path:
    return Path(os.fsdecode(file.name))
