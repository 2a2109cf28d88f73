"""Records as Redis hashes, and what a Redis URL must look like; no connection is made."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mloc_prefect.errors import MissingExtraError, StoreError
from mloc_prefect.services import valkey
from mloc_prefect.store.backends import open_stores
from mloc_prefect.store.records import Submission, TaskRecord
from mloc_prefect.store.redis import codec as codec
from tests.support.records import record

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.none() | text.filter(bool)
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
documents = st.dictionaries(text, st.recursive(st.none() | st.integers() | text, st.lists), max_size=5)
records = st.builds(
    replace,
    st.just(record()),
    parsed=documents,
    raw_yaml=text,
    error=names,
    assigned_worker=names,
    started_ts=numbers,
    submitted_ts=st.floats(0, 1e12),
    shard_index=st.none() | st.integers(0, 9),
    load=st.integers(0, 9),
    max_attempts=st.integers(-1, 9),
    depends_on=st.lists(text).map(tuple),
)


def as_read(hashed: dict, wanted) -> list[bytes | None]:
    """Return what Redis gives for the fields of a stored hash."""
    stored = {name: value if isinstance(value, bytes) else value.encode() for name, value in hashed.items()}
    return [stored.get(name) for name in wanted]


@given(entry=records)
def test_records_come_back_as_they_were(entry: TaskRecord):
    with_text = codec.encode_record(entry, text=True)
    assert codec.decode_record(as_read(with_text, codec.RECORD_FIELDS)) == entry
    without = codec.encode_record(entry, text=False)
    assert "raw_yaml" not in without
    assert (
        codec.decode_record(
            as_read(without, codec.RECORD_FIELDS),
            text=codec.SubmittedText(entry.raw_yaml, entry.shown_yaml, masked=True),
        )
        == entry
    )
    brief = codec.decode_record(as_read(with_text, codec.BRIEF_FIELDS), codec.BRIEF_FIELDS)
    assert brief == replace(entry, raw_yaml="", parsed={})


@given(name=text, key=names, parameters=st.dictionaries(text, text), flow_run=names, cancelled=st.booleans())
def test_submissions_come_back_as_they_were(name, key, parameters, flow_run, cancelled):
    made = Submission(
        submission_id="s",
        raw_yaml="a: 1",
        task_ids=("b", "a"),
        name=name,
        parameters=parameters,
        idempotency_key=key,
        flow_run=flow_run,
        cancelled=cancelled,
    )
    hashed = codec.encode_submission(made)
    assert codec.decode_submission("s", as_read(hashed, codec.SUBMISSION_FIELDS)) == made


def test_every_field_has_its_place():
    stored = {entry.name for entry in fields(TaskRecord)} - {"mark"}
    assert set(codec.RECORD_FIELDS) == stored | {"attempt", "phase"}
    assert set(codec.SUBMISSION_FIELDS) == {entry.name for entry in fields(Submission)} - {"submission_id"}


def test_what_is_missing_is_none():
    assert codec.decode_record([None] * len(codec.RECORD_FIELDS)) is None
    assert codec.decode_submission("s", [None] * len(codec.SUBMISSION_FIELDS)) is None


@given(value=st.text(st.characters(exclude_categories=["Cs"])) | st.just("x" * codec.COMPRESSED_FROM) | st.just("\0"))
def test_long_text_is_stored_short(value: str):
    stored = codec.squeeze(value)
    raw = stored if isinstance(stored, bytes) else stored.encode()
    assert codec.expand(raw) == value
    assert len(raw) <= codec.COMPRESSED_FROM * 4


@pytest.mark.parametrize("url", ["redis://:secret@h:port/0", "http://:secret@h", "secret", "redis://h?db=secret"])
def test_a_url_that_cannot_be_read_is_refused_without_being_shown(url):
    with pytest.raises(StoreError, match="the Redis URL cannot be read") as caught:
        open_stores(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://:secret@h:1/2", "Redis at h:1"),
        ("valkey://h", "Redis at h:6379"),
        ("valkeys://h:7/0", "Redis at h:7"),
        ("unix:///run/redis.sock?db=1", "Redis at /run/redis.sock"),
    ],
)
def test_servers_are_called_by_their_address(url, name):
    assert open_stores(url).backing.name == name


def test_a_missing_server_program_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == "redis-server" else None)
    assert str(valkey.server_program()) == "/usr/bin/redis-server"
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(MissingExtraError, match="no Valkey or Redis server is installed"):
        valkey.server_program()
