"""The documents that a spec names: files, folders, fsspec URLs, data sets, and texts in the spec itself."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import posixpath
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mloc_prefect.artifacts.cache import fetch_http
from mloc_prefect.artifacts.data_files import open_binary, open_file_system
from mloc_prefect.artifacts.mirrors import is_url
from mloc_prefect.artifacts.transfer.outgoing import TransferError, check_url, is_passing, shown_text, shown_url
from mloc_prefect.errors import ArtifactError
from mloc_prefect.execution.failures import one_line
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.execution.wire import json_ready
from mloc_prefect.executors.rag.document_text import ENDINGS, LARGEST_TEXT, Section, UnreadableError, sections_of
from mloc_prefect.executors.rag.pdf_reader import PdfReaderProcess
from mloc_prefect.executors.sources.datasets_source import load_table
from mloc_prefect.executors.sources.source_lookup import may_pass, user_error
from mloc_prefect.process.regular_file import open_regular
from mloc_prefect.tasks.rag import READING_SECONDS, item_problem
from mloc_prefect.urls import local_path

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from mloc_prefect.executors.common.spec_reader import SpecReader
    from mloc_prefect.executors.sources.source_lookup import SourceLookup

LARGEST = 256 << 20
"""Bytes of one document; it is held in memory."""

_STEP = 1 << 20
_SHOWN_FAULTS = 3
_LOGGED_FAULTS = 100
_HTTP = ("http://", "https://")
_LONE = re.compile("[\ud800-\udfff]")
_FORGOTTEN = 24 * 3600.0  # seconds after which a copy is of a dead process


@dataclass(frozen=True, slots=True)
class RagDocument:
    """One document.

    Attributes:
        source: Its name, the same at each run.
        sections: Its text.
        metadata: Values that all its passages have.
    """

    source: str
    sections: Sequence[Section]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def digest(self, *more: Any) -> str:
        """Return what changes when its text or metadata changes, or one of `more`: SHA-256 (hex)."""
        parts = [[(s.text, s.page) for s in self.sections], dict(self.metadata), *more]
        text = json.dumps(parts, ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def fault(self) -> str | None:
        """Return why it cannot be stored, None if it can."""
        metadata = json.dumps(dict(self.metadata), ensure_ascii=False)
        if any(_LONE.search(text) for text in (self.source, metadata, *(s.text for s in self.sections))):
            return "it has halves of characters (lone surrogates), which cannot be stored"
        if sum(len(section.text) for section in self.sections) > LARGEST_TEXT:
            return f"it has more than {LARGEST_TEXT} characters of text"
        return None


class DocumentSources:
    """Reads the documents of a task, one after the other.

    Args:
        wanted: The block `documents`.
        sources: Mirrors, allowed hosts and local paths.
        log: Receives what was left out, as a line.
        check: Called while a document takes long; may raise to abort.
    """

    def __init__(
        self,
        wanted: SpecReader,
        sources: SourceLookup,
        log: Callable[[str], None],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._wanted = wanted
        self._sources = sources
        self._log = log
        self._skips = wanted.flag("skip_unreadable", default=True)
        self._pdf = PdfReaderProcess(wanted.number("timeoutSec", READING_SECONDS), check)
        self._faults: list[str] = []
        self._unread: list[str] = []

    @property
    def left_out(self) -> int:
        """Number of documents so far that cannot be used."""
        return len(self._faults)

    def documents(self) -> Iterator[RagDocument]:
        """Yield all documents that can be used; one that is named twice comes once.

        Raises:
            UserError: What the spec names is not there or may not be read; a document cannot be used and the spec wants
                all, or none can be used.
            ArtifactError: A document cannot be fetched now.
        """
        seen: dict[str, str] = {}
        with closing(self._pdf):
            yield from self._usable(seen)
        if self._unread:
            shown = ", ".join(self._unread[:_SHOWN_FAULTS]) + (", ..." if len(self._unread) > _SHOWN_FAULTS else "")
            self._log(f"{len(self._unread)} files in folders are left out, for they are no documents: {shown}")
        if self._faults:
            shown = "; ".join(self._faults[:_SHOWN_FAULTS])
            more = f"; and {len(self._faults) - _SHOWN_FAULTS} more" if len(self._faults) > _SHOWN_FAULTS else ""
            if not self._skips:
                hint = "without spec.documents.skip_unreadable: false they are left out"
                raise UserError(f"{len(self._faults)} documents cannot be used: {shown}{more} ({hint})")
            if not seen:
                raise UserError(f"none of the documents can be used: {shown}{more}")
            self._log(f"{len(self._faults)} documents are left out, for they cannot be used")

    def _usable(self, seen: dict[str, str]) -> Iterator[RagDocument]:
        """Yield the documents that can be used; `seen` gets the digest of each by its name."""
        for document in self._all():
            if fault := document.fault():
                self._fault(document.source, fault)
                continue
            digest = document.digest()
            if document.source not in seen:
                seen[document.source] = digest
                yield document
            elif seen[document.source] != digest:
                self._fault(document.source, "another document has this name")

    def _all(self) -> Iterator[RagDocument]:
        for number, path in enumerate(self._wanted.get("paths") or ()):
            if not isinstance(path, str) or not path.strip():
                raise UserError(f"{self._wanted.path}.paths[{number}] must be a path or a URL, found {path!r}")
            yield from self._at(path.strip())
        if self._wanted.get("dataset") is not None:
            yield from self._rows(self._wanted.child("dataset"))
        for number, item in enumerate(self._wanted.get("items") or ()):
            if problem := item_problem(item):
                raise UserError(f"{self._wanted.path}.items[{number}] {problem}")
            found: dict[str, Any] = {"text": item} if isinstance(item, str) else item
            source = found.get("source") or f"items[{number}]"
            metadata = _plain(found.get("metadata") or {}, f"{self._wanted.path}.items[{number}].metadata")
            yield RagDocument(source, _as_sections(found["text"]), metadata)

    def _at(self, text: str) -> Iterator[RagDocument]:
        """Yield the documents at a path or URL."""
        try:
            if text.lower().startswith(_HTTP):
                yield from self._fetched(text)
            elif local_path(text) is None and is_url(text):
                self._sources.local(text)  # refuses kinds of URLs that submitted specs may not use
                check_url(text, self._sources.allowed)
                yield from self._remote(text)
            else:
                yield from self._local(text)
        except ArtifactError as error:
            if may_pass(error):
                raise
            raise user_error(error) from None

    def _local(self, text: str) -> Iterator[RagDocument]:
        root = self._sources.local(text)
        if root.is_file():
            yield from self._document(text, self._sources.admit(root), _open_local)
            return
        if not root.is_dir():
            raise UserError(f"{self._wanted.path}.paths: {text} does not exist")
        real = self._sources.admit(root)
        for folder, folders, files in os.walk(real):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                file = Path(folder, name)
                below = file.relative_to(real).as_posix()
                if self._is_wanted(below):
                    yield from self._document(posixpath.join(text.rstrip("/"), below), file, _open_local)

    def _remote(self, url: str) -> Iterator[RagDocument]:
        try:
            fs, root = open_file_system(url)
            names = [root] if fs.isfile(root) else sorted(str(name) for name in fs.find(root))
        except (OSError, ImportError, ValueError) as error:
            raise _not_read(url, error) from None
        if not names:
            raise UserError(f"{self._wanted.path}.paths: {shown_url(url)} does not exist or is empty")
        for name in names:
            below = name.removeprefix(root).lstrip("/")
            if not below or self._is_wanted(below):
                source = _named(url) if not below else f"{_named(url).rstrip('/')}/{below}"
                yield from self._document(source, name, lambda at: fs.open(at, "rb"), name=name)

    def _fetched(self, url: str) -> Iterator[RagDocument]:
        copies = self._sources.home / "cache" / "documents"
        copies.mkdir(parents=True, exist_ok=True)
        _sweep(copies)
        with TemporaryDirectory(dir=copies) as own:  # another task may fetch and remove a copy of the same URL
            file = fetch_http(url, Path(own), self._sources.allowed)
            yield from self._document(_named(url), str(file), open_binary, name=urlsplit(url).path)

    def _is_wanted(self, below: str) -> bool:
        """Return whether a file in a folder is a document: by `pattern`, else by its ending."""
        if any(part.startswith(".") for part in below.split("/")):
            return False
        pattern = self._wanted.text("pattern")
        if pattern is not None:
            return fnmatchcase(below, pattern) or fnmatchcase(posixpath.basename(below), pattern)
        if below.lower().endswith(ENDINGS):
            return True
        self._unread.append(below)
        return False

    def _document(
        self,
        source: str,
        at: Any,
        opener: Callable[[Any], AbstractContextManager[IO[bytes]]],
        *,
        name: str | None = None,
    ) -> Iterator[RagDocument]:
        try:
            with opener(at) as stream:
                content = _read_whole(stream)
            sections = sections_of(name or source, content, self._pdf.pages)
        except ImportError as error:
            raise _not_read(source, error) from None
        except (OSError, ValueError) as error:
            refused = _not_read(source, error)
            if isinstance(refused, TransferError):
                raise refused from None
            self._fault(source, shown_text(f"it cannot be read: {one_line(error)}"))
            return
        except UnreadableError as fault:
            self._fault(source, str(fault))
            return
        except (EOFError, zlib.error, lzma.LZMAError):
            self._fault(source, "it is compressed, and incomplete or damaged")
            return
        yield RagDocument(source, sections)

    def _rows(self, wanted: SpecReader) -> Iterator[RagDocument]:
        table = load_table(wanted, self._sources)
        column, named = wanted.text("column") or "text", wanted.text("id_column")
        url = _named(wanted.text("url") or "")
        more = [str(name) for name in wanted.get("metadata_columns") or ()]
        for name in (column, *([named] if named else ()), *more):
            if table.rows and name not in table.columns:
                raise UserError(f"{wanted.path}: column '{name}' is not there. Available: {list(table.columns)}")
        for number, row in enumerate(table.rows):
            text = row.get(column)
            if not isinstance(text, str):
                self._fault(f"row {number}", f"column '{column}' is not text")
                continue
            key = _plain(row.get(named), f"{wanted.path}: column '{named}'") if named else number
            if key is None:
                self._fault(f"row {number}", f"column '{named}' is empty, so the document has no name")
                continue
            metadata = {name: _plain(row.get(name), f"{wanted.path}: column '{name}'") for name in more}
            yield RagDocument(f"{url}#{key}", _as_sections(text), metadata)

    def _fault(self, source: str, text: str) -> None:
        """Note a document that is left out; names of files may have bytes that are no text."""
        self._faults.append(f"{source.encode(errors='backslashreplace').decode()}: {text}")
        if self._skips and len(self._faults) <= _LOGGED_FAULTS:
            self._log(f"left out: {self._faults[-1]}")


def _read_whole(stream: IO[bytes]) -> bytes:
    parts, size = [], 0
    while part := stream.read(_STEP):
        size += len(part)
        if size > LARGEST:
            raise UnreadableError(f"it has more than {LARGEST >> 20} MiB")
        parts.append(part)
    return b"".join(parts)


def _as_sections(text: str) -> Sequence[Section]:
    return [Section(text)] if text.strip() else []


def _plain(value: Any, where: str) -> Any:
    try:
        return json_ready(value)
    except TypeError as error:
        raise UserError(f"{where}: {error}") from None


def _named(url: str) -> str:
    """Return the name of the document at a URL, without its query, which may hold a signature.

    Two queries are two documents, so a hash stands for the query.
    """
    query = url.partition("#")[0].partition("?")[2] if local_path(url) is None else ""
    digest = hashlib.sha256(query.encode(errors="surrogatepass")).hexdigest()
    return f"{shown_url(url)}?{digest[:8]}" if query else shown_url(url)


def _sweep(copies: Path) -> None:
    """Remove copies that dead processes have left."""
    for old in copies.iterdir():
        with suppress(OSError):  # another process may be removing it too
            if time.time() - old.lstat().st_mtime > _FORGOTTEN:
                shutil.rmtree(old) if old.is_dir() else old.unlink()


def _open_local(path: Path) -> IO[bytes]:
    return open_regular(path)


def _not_read(source: str, error: Exception) -> Exception:
    text = shown_text(f"{source} cannot be read: {one_line(error)}")
    if local_path(source) is None and is_passing(error):
        return TransferError(text, retryable=True)
    return UserError(text)
