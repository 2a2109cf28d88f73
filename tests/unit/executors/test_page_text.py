"""The text of pages: what people would see, and pages that are made to take time or to fail."""

from __future__ import annotations

import pytest

from mloc_prefect.executors.sources.page_text import MOST, document_text_of, page_text

SEEN = {
    "<p>one<p>two": "one\ntwo",
    "<h1>A &amp; B</h1>1 < 2": "A & B\n1 < 2",
    "see <a class=x href='https://a.invalid/b?c=1&amp;d=2'>this <b>page</b></a>.": (
        "see this page (https://a.invalid/b?c=1&d=2)."
    ),
    '<a href="#top">up</a> <a name=x>here</a>': "up here",
    '<p title="a > b">text</p>': "text",
    "<script>if (1 < 2) { x = '<p>' }</SCRIPT >after<style>p > a {}</style>": "after",
    "<svg><text>no</text></svg>yes<svg/>again<template>no": "yes\nagain",
    "a<!-- <p>no -->b<!doctype html><?x y>c": "abc",
    "a<![CDATA[x]]>b": "ab",
    "<![": "",
    "begin <p": "begin",
    "</": "",
    f"&#{'9' * 5000}; and &#65;": f"&#{'9' * 5000}; and &#65;",
}


@pytest.mark.parametrize("page", SEEN)
def test_text_of_a_page(page: str) -> None:
    assert page_text(page) == SEEN[page]


HOSTILE = (
    "<a ",
    "<",
    "<!",
    "<![",
    "<!--",
    '<a href="',
    "<a href='x' href=",
    "</script",
    "<script>",
    "&",
    "&#",
    "<svg>",
    "='",
    "x<br>",
    "<div>",
)


@pytest.mark.parametrize("part", HOSTILE)
def test_a_page_that_is_made_to_take_time_is_read_in_one_pass(part: str) -> None:
    """A pass with the square of the length would take hours here."""
    page_text(part * (1_000_000 // len(part)))
    document_text_of(part * (1_000_000 // len(part)))


def test_of_a_very_long_page_the_beginning_is_read() -> None:
    text = page_text("<p>begin" + " " * MOST + "end")
    assert text == f"begin\n... cut: the page has {MOST + 11} characters, and {MOST} were read"


def test_text_of_a_document_has_its_paragraphs_and_no_targets() -> None:
    page = "<title>T</title><h1>A</h1><ul><li>one<li><a href='https://b.invalid'>two</a></ul><td>x</td><td>y</td>"
    assert document_text_of(page) == "T\n\nA\n\none\ntwo\n\nx\n\ny"
