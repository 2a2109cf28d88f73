"""The text of documents: what is read as what, and what cannot be read is one line."""

from __future__ import annotations

import zlib
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.executors.rag.document_text import LARGEST_HTML, Section, UnreadableError
from mloc_prefect.executors.rag.document_text import sections_of as text_of
from mloc_prefect.executors.rag.pdf_reader import PdfReaderProcess
from tests.support.documents import pdf_of

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = b"""<!doctype html><html><head><title>T</title><style>p {color: red}</style></head><body>
<script>alert("no")</script><h1>Leave</h1><p>Ask your <b>lead</b>er.<br>Then wait.</p>
<table><tr><td>one</td><td>two</td></tr></table></body></html>"""


def sections_of(name: str, content: bytes) -> Sequence[Section]:
    with closing(PdfReaderProcess(60, lambda: None)) as pdf:
        return text_of(name, content, pdf.pages)


def test_plain_text_and_markdown_stay_as_they_are() -> None:
    assert [s.text for s in sections_of("a.md", "# Ä\n\n* x\n".encode())] == ["# Ä\n\n* x\n"]
    assert [s.text for s in sections_of("a.txt", b"\xef\xbb\xbfx")] == ["x"]
    assert [s.text for s in sections_of("a.txt", "ä".encode("utf-16"))] == ["ä"]
    assert sections_of("a.txt", b" \n") == []


def test_html_is_its_text_without_scripts() -> None:
    (section,) = sections_of("a.html", PAGE)
    assert section.text == "T\n\nLeave\n\nAsk your leader.\nThen wait.\n\none\n\ntwo"
    assert "alert" not in section.text
    assert "color" not in section.text
    assert sections_of("page", PAGE)[0].text == section.text, "without an ending the first bytes decide"


def test_pdf_has_a_section_for_each_page_with_text() -> None:
    sections = sections_of("a.pdf", pdf_of(["First page.", "", "Third page."]))
    assert [(s.page, s.text.strip()) for s in sections] == [(1, "First page."), (3, "Third page.")]
    assert sections_of("unnamed", pdf_of(["x"]))[0].page == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"\xff\x00\x81", "it is not utf-8 text (byte 0)"),
        ("a.md", b"a\0b", "NUL"),
        ("a.pdf", b"no pdf", "its PDF cannot be read"),
        ("a.pdf", pdf_of(["x"])[:120], "its PDF cannot be read"),
        ("a", zlib.compress(b"x" * 99), "it is not utf-8 text"),
    ],
)
def test_what_cannot_be_read_is_one_line(name: str, content: bytes, words: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        sections_of(name, content)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [b"x<br>", b"<div>x", b'<a x="', b"<!--", b"<p>x</p>", b"</p>", b"&#x"])
def test_html_takes_time_with_its_length_only(part: bytes) -> None:
    """With a tree and the square of the length, a page of this size would take hours."""
    sections_of("a.html", b"<html>" + part * (1_000_000 // len(part)))


def test_deep_html_is_read_and_too_much_of_it_is_not() -> None:
    (section,) = sections_of("a.html", b"<div>" * 200_000 + b"bottom" + b"</div>" * 200_000)
    assert section.text == "bottom"
    with pytest.raises(UnreadableError, match="it has more than 32 MiB of HTML"):
        sections_of("a.html", b"x" * (LARGEST_HTML + 1))


@pytest.mark.parametrize(
    "content",
    [
        "<p>Käse €</p>".encode(),
        b'<meta charset="utf-8"><p>K\xc3\xa4se \xe2\x82\xac',
        b"<meta charset=iso-8859-15><p>K\xe4se \xa4",
        b"<p>K\xe4se \x80",
        b"<meta charset=utf-8><p>K\xe4se \x80",
        b"<meta charset=unicode_escape><p>K\xe4se \x80",
        "<p>Käse €".encode("utf-16"),
    ],
)
def test_html_is_read_in_the_encoding_that_it_names(content: bytes) -> None:
    assert [s.text for s in sections_of("a.html", content)] == ["Käse €"]


def test_many_comments_at_the_start_are_read_once() -> None:
    # With a pattern that goes back, the time doubles with each comment, so that the test would not end.
    assert sections_of("page", b"<!--a-->" * 200 + b"x")[0].text.endswith("x")
    assert sections_of("page", b"<!--a-->\n" * 200 + b"<html><p>y</p></html>")[0].text == "y"
