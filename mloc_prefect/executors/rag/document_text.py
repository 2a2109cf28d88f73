"""The text of documents: plain text and Markdown, HTML with Beautiful Soup, PDF with pypdf."""

from __future__ import annotations

import io
import posixpath
import re
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.failures import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
_HIDDEN = ("script", "style", "template", "noscript", "svg", "iframe", "object", "head")
_LINES = (
    *("address", "article", "aside", "blockquote", "dd", "div", "dl", "dt", "fieldset", "figcaption", "figure"),
    *("footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre"),
    *("section", "table", "tr", "ul", "br"),
)
_BLANKS = re.compile(r"[^\S\n]+")
_GAPS = re.compile(r"\n{3,}")


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


def sections_of(name: str, content: bytes) -> Sequence[Section]:
    """Return the text of a document.

    Args:
        name: Its path or URL; the ending decides how it is read, else its first bytes do.
        content: Its bytes.

    Raises:
        UnreadableError: It is not what its ending says, or no text at all.
    """
    kind = _KINDS.get(posixpath.splitext(name)[1].lower()) or _sniffed(content)
    if kind == "pdf":
        return [*_pdf(content)]
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
    from bs4 import BeautifulSoup

    try:
        soup = BeautifulSoup(content, "html.parser")
        for tag in soup.find_all(_HIDDEN):
            tag.decompose()
        for tag in soup.find_all(_LINES):  # a word does not go on in the next paragraph
            tag.insert_before("\n")
            tag.append("\n")
        text = soup.get_text()
    except (RecursionError, ValueError, AssertionError) as error:
        raise UnreadableError(f"its HTML cannot be read: {one_line(error) or type(error).__name__}") from None
    lines = (line.strip() for line in _BLANKS.sub(" ", text.replace("\r", "\n")).split("\n"))
    return _GAPS.sub("\n\n", "\n".join(lines)).strip()


def _pdf(content: bytes) -> Iterator[Section]:
    """Yield one section for each page that has text.

    pypdf raises all kinds of errors on malformed files, so that all of them are about the file here.
    """
    from pypdf import PdfReader

    try:
        reader: Any = PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableError("it is a PDF with a password")
        texts = [page.extract_text() or "" for page in reader.pages]
    except (UnreadableError, MemoryError):
        raise
    except Exception as error:  # boundary: a file of unknown origin
        raise UnreadableError(f"its PDF cannot be read: {one_line(error, 200) or type(error).__name__}") from None
    for number, text in enumerate(texts, 1):
        if text.strip():
            yield Section(text, number)
