"""Split texts: the slice language of `datasets`, fractions included."""

from __future__ import annotations

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.sources.splits import parse_split


@pytest.mark.parametrize(
    ("text", "total", "rows"),
    [
        ("train", 5, range(5)),
        ("train[:3]", 5, range(3)),
        ("train[:200]", 5, range(5)),
        ("train[2:4]", 5, range(2, 4)),
        ("train[3:]", 5, range(3, 5)),
        ("train[-2:]", 5, range(3, 5)),
        ("train[:-1]", 5, range(4)),
        ("train[:]", 5, range(5)),
        ("train[:1_000]", 2000, range(1000)),
        ("train[ 1 : 2 ]", 5, range(1, 2)),
        ("train[:10%]", 25, range(2)),  # 2.5 rounds to even, as in datasets
        ("train[:50%]", 7, range(4)),
        ("train[25%:50%]", 8, range(2, 4)),
        ("train[-25%:]", 8, range(6, 8)),
        ("train[0%:0.333333%]", 3000, range(10)),
        ("train[7:3]", 9, range(7, 3)),
    ],
)
def test_rows(text: str, total: int, rows: range) -> None:
    (split,) = parse_split(text)
    assert split.name == "train"
    assert split.rows(total) == rows


def test_sums() -> None:
    first, second = parse_split("train[:2] + test")
    assert (first.name, first.rows(9), second.name, second.rows(9)) == ("train", range(2), "test", range(9))


@pytest.mark.parametrize(
    ("text", "enough"), [("a", None), ("a[:7]", 7), ("a[2:7]", 7), ("a[-2:7]", None), ("a[:7%]", None)]
)
def test_how_many_rows_are_enough(text: str, enough: int | None) -> None:
    assert parse_split(text)[0].rows_to_read == enough


@pytest.mark.parametrize(
    "text", ["train[", "train[10%]", "train[a:b]", "[:3]", "train[:2][:3]", "train[1.5:]", "train[::2]", "+"]
)
def test_wrong_texts_are_refused_in_words(text: str) -> None:
    with pytest.raises(UserError, match=r"spec\.data\.split"):
        parse_split(text)
