"""Uploads: one part of a multipart body, written and hashed while it comes in. [protocol 1.5].

The framework's own form parser would first put the whole file into a temporary one.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from contextlib import AsyncExitStack, contextmanager
from typing import IO, TYPE_CHECKING
from uuid import uuid4

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from mloc_prefect.server import digests
from mloc_prefect.server.places import check_name, place_of_upload
from mloc_prefect.server.replies import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fastapi import Request

FIELD = "file"
MISSING_FILE = [{"type": "missing", "loc": ["body", FIELD], "msg": "Field required", "input": None}]
_NOT_A_FILE = [
    {
        "type": "value_error",
        "loc": ["body", FIELD],
        "msg": "Value error, Expected UploadFile, received: <class 'str'>",
        "input": None,
    }
]

_BLOCK = 4 << 20  # bytes that are written at once; two blocks are in memory at most
_SYNCED = 64 << 20  # bytes that are put on disk at once while more comes in: the end then has little to wait for
_PIECES = 512  # that one call writes; systems take 1024
_MOST_HEADERS = 16 * 1024  # bytes before the data of a part
_BROKEN = "There was an error parsing the body"


async def receive_file(request: Request, directory: Path, *, most: int) -> Path:
    """Store the part `file` of the body in the directory of a task, and return where it lies.

    The file appears under its name when all of it is on disk; before, and after any error, there is what was before.

    Args:
        request: Its body.
        directory: Directory of the task.
        most: Largest file, bytes; 0 = no limit.

    Raises:
        Problem: 400 or 422 for a bad body, 413 for a large file, 507 for a full disk.
    """
    boundary = _boundary(request)
    if most and int(request.headers.get("content-length") or 0) > most + _MOST_HEADERS:
        raise too_large(most)
    async with AsyncExitStack() as stack:
        with disk_problems():
            sink = await _read(request, _Form(boundary), directory, most, stack)
            return await sink.commit()


async def _read(request: Request, form: _Form, directory: Path, most: int, stack: AsyncExitStack) -> _Sink:
    """Read the whole body; the sink is closed with `stack`."""
    sink: _Sink | None = None
    async for chunk in request.stream():
        data = form.feed(chunk)
        if form.name is not None and sink is None:
            sink = _Sink(directory, place_of_upload(directory, form.name))
            stack.push_async_callback(sink.close)
        if sink is not None:
            await sink.take(data)
            if most and sink.size > most:
                raise too_large(most)
    form.finish()
    if sink is None:
        raise Problem(422, MISSING_FILE)
    return sink


@contextmanager
def disk_problems() -> Iterator[None]:
    """Turn what can go wrong with body, network and disk into answers."""
    try:
        yield
    except MultipartParseError as error:
        raise Problem(400, f"{_BROKEN}: {error}") from None
    except ClientDisconnect:
        raise Problem(400, "the upload ended before its file was complete") from None
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise Problem(507, "no space is left for the results") from error
        raise


class _Form:
    """What a multipart body says, as far as it was read."""

    def __init__(self, boundary: bytes) -> None:
        callbacks = {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_end": self._end,
        }
        self._parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]  # a TypedDict of exactly these
        self._field, self._value, self._headers = b"", b"", dict[bytes, bytes]()
        self._header_bytes = 0
        self._wanted = False
        self._complete = False
        self._data: list[bytes] = []
        self.name: str | None = None
        """Name of the file, once it is known."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Read on; return the data of the file that came."""
        self._data = []
        self._parser.write(chunk)
        return self._data

    def finish(self) -> None:
        """Say that the body has ended.

        Raises:
            Problem: 400 when the last boundary was missing.
        """
        if not self._complete:
            raise Problem(400, f"{_BROKEN}: the last boundary is missing")

    def _part_begin(self) -> None:
        self._headers, self._field, self._value = {}, b"", b""
        self._wanted = False

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += self._counted(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += self._counted(data[start:end])

    def _counted(self, part: bytes) -> bytes:
        self._header_bytes += len(part)
        if self._header_bytes > _MOST_HEADERS:
            raise Problem(400, f"{_BROKEN}: the headers of its parts are too long")
        return part

    def _header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        if options.get(b"name") != FIELD.encode():
            return
        if b"filename" not in options:
            raise Problem(422, _NOT_A_FILE)
        if self.name is not None:
            raise Problem(400, "one file at a time")
        self.name = check_name(_text(options[b"filename"]))
        self._wanted = True

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._wanted:
            self._data.append(data[start:end])

    def _end(self) -> None:
        self._complete = True


class _Sink:
    """Writes blocks beside the target; each is written and hashed in threads while the next comes in."""

    def __init__(self, directory: Path, target: Path) -> None:
        self._directory, self._target = directory, target
        self._part = target.with_name(f".{uuid4().hex}.part")
        self._file: IO[bytes] | None = None
        self._sha = hashlib.sha256()
        self._block: list[bytes] = []
        self._held = 0
        self._working: asyncio.Future[tuple[None, None]] | None = None
        self._syncing: asyncio.Task[None] | None = None
        self._unsynced = 0
        self.size = 0

    async def take(self, data: list[bytes]) -> None:
        """Keep data; waits for the disk when it is slower than the network."""
        for piece in data:
            self._block.append(piece)
            self._held += len(piece)
            self.size += len(piece)
        if self._held >= _BLOCK:
            await self._flush()

    async def commit(self) -> Path:
        """Put the file into its place, durably, and return that."""
        await self._flush()
        await self._settled()
        await self._synced()
        await asyncio.to_thread(self._publish)
        return self._target

    async def close(self) -> None:
        """Remove what was not committed."""
        busy = [work for work in (self._working, self._syncing) if work is not None]
        if busy:
            for work in (await asyncio.wait(busy))[0]:
                work.exception()  # looked at: the upload has ended with another one, or with none that counts
        await asyncio.to_thread(self._discard)

    async def _flush(self) -> None:
        await self._settled()
        await self._sync_some()
        self._unsynced += self._held
        block, self._block, self._held = self._block, [], 0
        self._working = asyncio.gather(self._thread(self._write, block), self._thread(self._hash, block))

    async def _settled(self) -> None:
        if self._working is not None:
            await asyncio.wait([self._working])  # when this request is cancelled meanwhile, `close` waits for it
            self._working.result()
            self._working = None

    async def _sync_some(self) -> None:
        """Begin to put on disk what was written so far, when that is much and no such thing is under way."""
        if self._file is None or self._unsynced < _SYNCED or (self._syncing is not None and not self._syncing.done()):
            return
        await self._synced()
        self._unsynced = 0
        self._syncing = asyncio.create_task(asyncio.to_thread(os.fdatasync, self._file.fileno()))

    async def _synced(self) -> None:
        # An error of the disk is told once: to this sync or to the last one.
        if self._syncing is not None:
            await asyncio.wait([self._syncing])
            self._syncing.result()
            self._syncing = None

    @staticmethod
    def _thread(call: Callable[[list[bytes]], None], block: list[bytes]) -> asyncio.Task[None]:
        return asyncio.create_task(asyncio.to_thread(call, block))

    def _write(self, block: list[bytes]) -> None:
        if self._file is None:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("xb", buffering=0)
        for at in range(0, len(block), _PIECES):  # not joined: that would copy all of it once more
            pieces = block[at : at + _PIECES]
            left = sum(map(len, pieces)) - os.writev(self._file.fileno(), pieces)
            if left:  # a disk that is nearly full takes a part; the next call says why
                self._write_rest(b"".join(pieces)[-left:])

    def _write_rest(self, data: bytes) -> None:
        assert self._file is not None
        while data:
            data = data[self._file.write(data) :]

    def _hash(self, block: list[bytes]) -> None:
        for piece in block:
            self._sha.update(piece)

    def _publish(self) -> None:
        if self._file is None:  # cannot be: an empty block opens it too
            raise OSError("nothing was written")
        os.fsync(self._file.fileno())
        found = os.fstat(self._file.fileno())
        self._part.replace(self._target)
        sync_directory(self._target.parent)
        digests.remember(self._directory, self._target, found, self._sha.hexdigest())

    def _discard(self) -> None:
        if self._file is not None:
            self._file.close()
            self._part.unlink(missing_ok=True)


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise Problem(422, MISSING_FILE)
    boundary = options.get(b"boundary")
    if not boundary:
        raise Problem(400, "Missing boundary in multipart.")
    return boundary


def too_large(most: int) -> Problem:
    """Return the answer to a file that is too large."""
    return Problem(413, f"a file may have {most} bytes at most (MLOC_MAX_UPLOAD_BYTES)")


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("latin-1")


def sync_directory(path: Path) -> None:
    """Put the names of a directory on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
