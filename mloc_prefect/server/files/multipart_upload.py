"""Uploads: one part of a multipart body, written and hashed as it arrives. [protocol 1.5].

Starlette's form parser would first write the whole file to a temporary one.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from contextlib import AsyncExitStack, contextmanager
from typing import IO, TYPE_CHECKING
from uuid import uuid4

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from mloc_prefect.artifacts.layout import RESPONSES
from mloc_prefect.artifacts.manifest import read_manifest
from mloc_prefect.artifacts.result_guard import result_lock
from mloc_prefect.server.files import digests
from mloc_prefect.server.files.task_files import check_name, place_of_upload
from mloc_prefect.server.responses import FINISHED, ErrorResponse, storage_problem

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

_BLOCK = 4 << 20  # bytes per write; at most two blocks are in memory
_SYNCED = 64 << 20  # bytes after which a sync is started during the upload, so that the last one is short
_PIECES = 512  # buffers per call of writev; systems accept 1024
_MOST_HEADERS = 16 * 1024  # bytes before the data of a part
_BROKEN = "There was an error parsing the body"


async def receive_file(request: Request, directory: Path, *, most: int) -> Path:
    """Store the part `file` of the body in the directory of a task, and return its path.

    The file appears under its name when all of it is on disk; until then, and after an error, an older file is kept.

    Args:
        request: The request with the body.
        directory: Directory of the task.
        most: Maximum size of the file in bytes; 0 = no limit.

    Raises:
        ErrorResponse: 400 or 422 for an invalid body, 413 for a large file, 507 for a full disk.
    """
    boundary = _boundary(request)
    if most and int(request.headers.get("content-length") or 0) > most + _MOST_HEADERS:
        raise too_large(most)
    async with AsyncExitStack() as stack:
        with upload_problems():
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
        raise ErrorResponse(422, MISSING_FILE)
    return sink


@contextmanager
def upload_problems() -> Iterator[None]:
    """Turn errors of the body, the network and the disk into error answers."""
    try:
        yield
    except FormParserError as error:
        raise ErrorResponse(400, f"{_BROKEN}: {error}") from None
    except ClientDisconnect:
        raise ErrorResponse(400, "the upload ended before its file was complete") from None
    except OSError as error:
        raise storage_problem(error) from error


class _Form:
    """Parses a multipart body."""

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
        """Parse a chunk; return the file data in it."""
        self._data = []
        self._parser.write(chunk)
        return self._data

    def finish(self) -> None:
        """Finish parsing.

        Raises:
            ErrorResponse: 400 if the last boundary is missing.
        """
        if not self._complete:
            raise ErrorResponse(400, f"{_BROKEN}: the last boundary is missing")

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
            raise ErrorResponse(400, f"{_BROKEN}: the headers of its parts are too long")
        return part

    def _header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        if options.get(b"name") != FIELD.encode():
            return
        if b"filename" not in options:
            raise ErrorResponse(422, _NOT_A_FILE)
        if self.name is not None:
            raise ErrorResponse(400, "one file at a time")
        self.name = check_name(_text(options[b"filename"]))
        self._wanted = True

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._wanted:
            self._data.append(data[start:end])

    def _end(self) -> None:
        self._complete = True


class _Sink:
    """Writes a file next to its target; each block is written and hashed in threads while the next arrives."""

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
        """Take data; waits if the disk is slower than the network."""
        for piece in data:
            self._block.append(piece)
            self._held += len(piece)
            self.size += len(piece)
        if self._held >= _BLOCK:
            await self._flush()

    async def commit(self) -> Path:
        """Move the file to its target durably, and return the target."""
        await self._flush()
        await self._settled()
        await self._synced()
        await asyncio.to_thread(self._publish)
        return self._target

    async def close(self) -> None:
        """Remove the file unless it was committed."""
        busy = [work for work in (self._working, self._syncing) if work is not None]
        if busy:
            for work in (await asyncio.wait(busy))[0]:
                work.exception()  # retrieved and ignored: the upload has already ended
        await asyncio.to_thread(self._discard)

    async def _flush(self) -> None:
        await self._settled()
        await self._sync_some()
        self._unsynced += self._held
        block, self._block, self._held = self._block, [], 0
        self._working = asyncio.gather(self._thread(self._write, block), self._thread(self._hash, block))

    async def _settled(self) -> None:
        if self._working is not None:
            await asyncio.wait([self._working])  # if this request is cancelled meanwhile, `close` waits for it
            self._working.result()
            self._working = None

    async def _sync_some(self) -> None:
        """Start a sync if enough has been written and no sync is running."""
        if self._file is None or self._unsynced < _SYNCED or (self._syncing is not None and not self._syncing.done()):
            return
        await self._synced()
        self._unsynced = 0
        self._syncing = asyncio.create_task(asyncio.to_thread(os.fdatasync, self._file.fileno()))

    async def _synced(self) -> None:
        # The kernel reports a disk error once: to this sync or to the last one.
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
        for at in range(0, len(block), _PIECES):  # joining the buffers would copy them once more
            pieces = block[at : at + _PIECES]
            left = sum(map(len, pieces)) - os.writev(self._file.fileno(), pieces)
            if left:  # a nearly full disk accepts a part; the next call raises the error
                self._write_rest(b"".join(pieces)[-left:])

    def _write_rest(self, data: bytes) -> None:
        assert self._file is not None
        while data:
            data = data[self._file.write(data) :]

    def _hash(self, block: list[bytes]) -> None:
        for piece in block:
            self._sha.update(piece)

    def _publish(self) -> None:
        if self._file is None:  # cannot happen: an empty block opens it too
            raise OSError("nothing was written")
        publish(self._file, self._part, self._target, self._directory, self._sha.hexdigest())

    def _discard(self) -> None:
        if self._file is not None:
            self._file.close()
            self._part.unlink(missing_ok=True)


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise ErrorResponse(422, MISSING_FILE)
    boundary = options.get(b"boundary")
    if not boundary:
        raise ErrorResponse(400, "Missing boundary in multipart.")
    return boundary


def too_large(most: int) -> ErrorResponse:
    """Return the answer for a file that is too large."""
    return ErrorResponse(413, f"a file may have {most} bytes at most (MLOC_MAX_UPLOAD_BYTES)")


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("latin-1")


def publish(file: IO[bytes], part: Path, target: Path, directory: Path, sha256: str) -> None:
    """Move a complete file to its target, durably, and store its digest.

    Args:
        file: The open file.
        part: Its current path.
        target: Its target.
        directory: Directory of the task.
        sha256: Digest of the file.

    Raises:
        ErrorResponse: 409: it is another result of a finished task.
        OSError: It cannot be synced or moved.
    """
    os.fsync(file.fileno())
    found = os.fstat(file.fileno())
    if target == directory / RESPONSES:
        _publish_result(part, directory, sha256)
    else:
        part.replace(target)
    handle = os.open(target.parent, os.O_RDONLY)  # the new name must be on disk, too
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    digests.remember(directory, target, found, sha256)


def _publish_result(part: Path, directory: Path, sha256: str) -> None:
    with result_lock(directory):
        manifest = read_manifest(directory)
        entry = manifest.entry(RESPONSES) if manifest else None
        if entry is not None and entry.sha256 != sha256:
            part.unlink(missing_ok=True)
            raise ErrorResponse(409, FINISHED.format(directory.name))
        part.replace(directory / RESPONSES)
