"""`search.filter`: what it may hold, and where a mistake is."""

from __future__ import annotations

from typing import Any

import pytest

from mloc_prefect.tasks.passage_filters import filter_fault, is_native


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"source": "a.md", "year": 2024, "draft": False, "weight": 0.5},
        {"team": ["a", "b"], "year": [2023, 2024]},
        {"year": {"gte": 2020, "lt": 2025}, "day": {"gt": "2024-01-31"}},
        {"team": {"not": "a"}, "year": {"not": [2020]}},
        {"must": [{"key": "year", "match": {"value": 1}}], "must_not": []},
    ],
)
def test_what_is_a_filter(wanted: dict[str, Any]) -> None:
    assert filter_fault(wanted) is None


@pytest.mark.parametrize(
    ("wanted", "path", "words"),
    [
        ({"team": []}, ("team",), "at least one"),
        ({"team": ["a", 1]}, ("team",), "texts or of whole numbers"),
        ({"team": [True]}, ("team",), "texts or of whole numbers"),
        ({"team": None}, ("team",), "must be a value"),
        ({"team": {}}, ("team",), "must be bounds"),
        ({"year": {"min": 3}}, ("year", "min"), "must be bounds"),
        ({"year": {"gte": True}}, ("year", "gte"), "must be a number"),
        ({"year": {"gte": "soon"}}, ("year", "gte"), "a date"),
        ({"year": {"gte": 3, "lt": "2024-01-01"}}, ("year", "gte"), "where all bounds are dates"),
        ({"team": {"not": []}}, ("team", "not"), "at least one"),
    ],
)
def test_what_is_none(wanted: dict[str, Any], path: tuple[str, ...], words: str) -> None:
    found = filter_fault(wanted)
    assert found is not None
    assert found[0] == path
    assert words in found[1]


def test_a_field_that_is_called_must_makes_no_native_filter() -> None:
    assert is_native({"must": [], "should": []})
    assert not is_native({"must": "x", "team": "a"})
    assert not is_native({})
