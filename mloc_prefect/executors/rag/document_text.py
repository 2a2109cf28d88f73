"""The text of documents: plain text and Markdown, HTML, and what `pdf_reader` finds in PDF files."""

from __future__ import annotations

import posixpath
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from mloc_prefect.executors.sources.page_text import document_text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_KINDS = {
    **dict.fromkeys((".txt", ".text", ".md", ".markdown", ".mdx", ".rst", ".adoc", ".org", ".tex"), "text"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    ".pdf": "pdf",
}
ENDINGS = tuple(_KINDS)
"""Endings of the files that are read in folders."""

# Atomic and possessive: a comment that is not followed by HTML is not read again with another end.
_HTML_START = re.compile(rb"\s*(?:(?><!--.*?-->)\s*)*+<(?:!doctype html|html)\b", re.IGNORECASE | re.DOTALL)
_SNIFFED = 4096
_DECLARED_IN = 1024  # bytes in which a page names its encoding, as browsers read it
_CHARSET = re.compile(rb"""charset\s{0,9}=\s{0,9}["']?([\w.:-]{1,40})""", re.IGNORECASE)
_ENCODINGS = re.compile(
    r"utf-?8|iso-?8859-\d{1,2}|latin-?1|us-ascii|windows-125\d|cp125\d|koi8-[ru]|macintosh"
    r"|shift[_-]jis|euc-(?:jp|kr)|iso-2022-jp|gbk|gb2312|gb18030|big5",
    re.IGNORECASE,
)
"""Encodings that a page may name: those of browsers. Python knows more, some of which take long or are no text."""

LARGEST_HTML = 32 << 20
"""Bytes of one HTML document: reading it takes about half a second for each MiB, and cannot be broken off."""

LARGEST_TEXT = 16 << 20
"""Characters of one document: its tokens are held in memory."""


class UnreadableError(Exception):
    """A document has no text that can be read; one line."""


class Section:
    """A part of a document that passages do not cross.

    Attributes:
        text: Its text.
        page: Its page, from 1, or None.
    """

    __slots__ = ("page", "text")

    def __init__(self, text: str, page: int | None = None) -> None:
        self.text = text
        self.page = page


def sections_of(name: str, content: bytes, pdf_pages: Callable[[bytes], Sequence[str]]) -> Sequence[Section]:
    """Return the text of a document.

    Args:
        name: Its path or URL; the ending decides how it is read, else its first bytes do.
        content: Its bytes.
        pdf_pages: Returns the text of each page of a PDF, see `pdf_reader`.

    Raises:
        UnreadableError: It is not what its ending says, or no text at all.
    """
    kind = _KINDS.get(posixpath.splitext(name)[1].lower()) or _sniffed(content)
    if kind == "pdf":
        return [Section(text, number) for number, text in enumerate(pdf_pages(content), 1) if text.strip()]
    text = _html(content) if kind == "html" else _plain(content)
    return [Section(text)] if text.strip() else []


def _sniffed(content: bytes) -> str:
    if content[:5] == b"%PDF-":
        return "pdf"
    return "html" if _HTML_START.match(content[:_SNIFFED]) else "text"


def _plain(content: bytes) -> str:
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UnreadableError(f"it is not {encoding.removesuffix('-sig')} text (byte {error.start})") from None
    if "\0" in text:
        raise UnreadableError("it is not text: it has NUL characters")
    return text


def _html(content: bytes) -> str:
    if len(content) > LARGEST_HTML:
        raise UnreadableError(f"it has more than {LARGEST_HTML >> 20} MiB of HTML")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return document_text_of(content.decode("utf-16", "replace"))
    named = _CHARSET.search(content[:_DECLARED_IN])
    encoding = named[1].decode("ascii", "replace") if named else "utf-8"
    if _ENCODINGS.fullmatch(encoding):
        with suppress(UnicodeDecodeError, LookupError):
            return document_text_of(content.decode(encoding).removeprefix("\ufeff"))
    return document_text_of(content.decode("cp1252", "replace"))  # as browsers do
