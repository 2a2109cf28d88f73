"""The waits between tries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import islice

from mloc_prefect.process.backoff import Backoff, retry_after


def test_waits_grow_up_to_a_bound() -> None:
    waits = Backoff(first=0.5, most=3.0)
    assert list(islice(waits, 5)) == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert waits.after(10**9) == 3.0


def test_each_iteration_begins_again() -> None:
    waits = Backoff(first=1.0, factor=1.5)
    assert list(islice(waits, 2)) == list(islice(waits, 2)) == [1.0, 1.5]


def test_the_wait_that_a_server_names() -> None:
    assert [retry_after(text) for text in ("12", " 1.5 ", "0")] == [12.0, 1.5, 0.0]
    unusable = (None, "", "-1", "soon", "inf", "Infinity", "nan", "1e9", "9" * 400, "\u0661", "1,5")
    assert [retry_after(text) for text in unusable] == [0.0] * len(unusable)


def test_the_moment_that_a_server_names() -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    for text in (format_datetime(later, usegmt=True), format_datetime(later.replace(tzinfo=None))):
        assert 3500 < retry_after(text) <= 3600, text
    assert retry_after("Thu, 01 Jan 1970 00:00:00 GMT") == 0.0
