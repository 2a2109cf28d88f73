"""Text to passages: nothing is lost, nothing is longer than asked for, and neighbours overlap."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mloc_prefect.executors.rag.chunking import passages_of, word_spans

WORDS = [f"w{number}" for number in range(100)]


def cut(text: str, tokens: int, overlap: int) -> list[str]:
    return list(passages_of(text, word_spans, tokens, overlap))


def halves(text: str) -> list[tuple[int, int]]:
    """A tokenizer that cuts words: two characters a token."""
    return [(at, min(at + 2, end)) for start, end in word_spans(text) for at in range(start, end, 2)]


def test_a_short_text_is_one_passage() -> None:
    assert cut("  one two  three\n", 10, 2) == ["one two  three"]
    assert cut(" \n", 10, 2) == []


def test_passages_have_the_size_and_the_overlap() -> None:
    found = [passage.split() for passage in cut(" ".join(WORDS), 20, 5)]
    assert [len(words) for words in found[:-1]] == [20] * (len(found) - 1)
    assert all(a[-5:] == b[:5] for a, b in pairwise(found))
    assert found[-1][-1] == WORDS[-1]


def test_a_passage_ends_at_a_paragraph_or_a_sentence_if_one_is_near() -> None:
    text = " ".join(WORDS[:16]) + "\n\n" + " ".join(WORDS[16:18]) + ". " + " ".join(WORDS[18:40])
    assert cut(text, 20, 0)[0].split() == WORDS[:16]
    text = " ".join(WORDS[:17]) + ". " + " ".join(WORDS[17:40])
    assert cut(text, 20, 0)[0] == " ".join(WORDS[:17]) + "."


def test_words_are_not_cut_between_tokens() -> None:
    text = " ".join(["abcdefg"] * 30)
    for passage in passages_of(text, halves, 10, 3):
        assert set(passage.split()) == {"abcdefg"}


def test_a_word_longer_than_a_passage_is_cut() -> None:
    assert "".join(passages_of("x" * 50, halves, 5, 0)) == "x" * 50


def test_a_text_longer_than_a_block_is_one_text() -> None:
    words = [f"word{number}" for number in range(60_000)]
    found = cut(" ".join(words), 1000, 0)
    assert [word for passage in found for word in passage.split()] == words


@given(
    st.lists(st.text(st.sampled_from("ab. \n"), min_size=1), max_size=60).map(" ".join),
    st.integers(1, 9),
    st.integers(0, 8),
)
def test_every_word_is_in_some_passage_and_none_is_too_long(text: str, tokens: int, overlap: int) -> None:
    if overlap >= tokens:
        return
    found = cut(text, tokens, overlap)
    assert all(len(passage.split()) <= tokens for passage in found)
    position = 0
    for passage in found:  # each is an unchanged part of the text, and they come in order
        position = text.index(passage, max(0, position - len(passage)))
    assert set(text.split()) == {word for passage in found for word in passage.split()}


@pytest.mark.parametrize("overlap", [0, 1, 8])
def test_it_always_ends(overlap: int) -> None:
    assert len(cut("a. " * 500, 9, overlap)) < 600
