"""Cuts text into passages of a number of tokens that overlap."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_WORD = re.compile(r"\S+")
_BLOCK = 200_000  # characters that a tokenizer gets at once
_PARAGRAPH, _SENTENCE = re.compile(r"\n\s*\n"), re.compile(r"[.!?。！？]\s|\n")
_SLACK = 0.3  # share of a passage that may be given up for an end at a paragraph or sentence


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return start and end of each word: what counts as a token where the server embeds."""
    return [match.span() for match in _WORD.finditer(text)]


def passages_of(
    text: str, spans_of: Callable[[str], Sequence[tuple[int, int]]], tokens: int, overlap: int
) -> Iterator[str]:
    """Yield the passages of a text, each an unchanged part of it without the white space at its ends.

    A passage ends at a paragraph or a sentence if one ends in its last part, else at a word.

    Args:
        text: The text.
        spans_of: Returns start and end of each token of a text.
        tokens: Most tokens of a passage.
        overlap: Tokens that a passage shares with the one before it; less than `tokens`.
    """
    spans = _all_spans(text, spans_of)
    first = 0
    while first < len(spans):
        last = min(first + tokens, len(spans))  # of the tokens, exclusive
        if last < len(spans):
            last = _good_end(text, spans, first, last)
        if passage := text[spans[first][0] : spans[last - 1][1]].strip():
            yield passage
        if last >= len(spans):
            return
        first = max(_word_start(text, spans, last - overlap, last), first + 1)


def _all_spans(text: str, spans_of: Callable[[str], Sequence[tuple[int, int]]]) -> list[tuple[int, int]]:
    """Return the tokens of a text of any length: a tokenizer would need memory for all of it at once."""
    found: list[tuple[int, int]] = []
    start = 0
    while start < len(text):
        stop = min(start + _BLOCK, len(text))
        if stop < len(text) and (blank := max(text.rfind(" ", start, stop), text.rfind("\n", start, stop))) > start:
            stop = blank + 1
        found += [(start + a, start + b) for a, b in spans_of(text[start:stop])]
        start = stop
    return found


def _good_end(text: str, spans: Sequence[tuple[int, int]], first: int, last: int) -> int:
    """Return where a passage of at most the tokens `first` to `last` should end."""
    earliest = max(first + 1, last - int((last - first) * _SLACK))
    at, end = spans[earliest - 1][1], spans[last][0]
    for pattern in (_PARAGRAPH, _SENTENCE):
        ends = [match.end() for match in pattern.finditer(text, at, end)]
        if ends:
            while last > earliest and spans[last - 1][0] >= ends[-1]:
                last -= 1
            return last
    while last > earliest and not _between_words(text, spans, last):
        last -= 1
    return last


def _word_start(text: str, spans: Sequence[tuple[int, int]], wanted: int, last: int) -> int:
    """Return the first token from `wanted` on that begins a word; `last` if there is none before it."""
    while wanted < last and not _between_words(text, spans, wanted):
        wanted += 1
    return wanted


def _between_words(text: str, spans: Sequence[tuple[int, int]], index: int) -> bool:
    """Return whether there is white space before a token."""
    return index <= 0 or text[spans[index - 1][1] : spans[index][0]] != "" or text[spans[index][0] - 1].isspace()
