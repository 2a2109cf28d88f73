"""Records and submissions as Redis hashes: text as text, numbers as text, other values as JSON, long values compressed.

A field with the value None, or an empty one, is not stored. A record does not contain the text of its submission.
"""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from mloc_prefect.store.records import Submission, TaskRecord
from mloc_prefect.store.states import Phase, StatusMark

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Value = str | bytes
Found: TypeAlias = "Sequence[bytes | None]"

COMPRESSED_FROM = 4096
"""Size in bytes from which a long field is compressed."""

_MARK = b"\0"  # prefix of compressed values
_INTEGERS = {"max_attempts", "shard_index", "shard_total", "load"}
_NUMBERS = {"submitted_ts", "last_queue_ts", "dispatched_ts", "started_ts", "finished_ts", "attended_until"}
_JSON = {"parsed", "depends_on", "task_ids", "parameters", "shown_parsed", "outline"}
_FLAGS = {"cancelled", "strict", "masked"}
_LONG = ("raw_yaml", "parsed", "shown_yaml", "shown_parsed")

SUBMISSION_FIELDS = (
    "raw_yaml",
    "task_ids",
    "submitted_at",
    "name",
    "file",
    "parameters",
    "strict",
    "idempotency_key",
    "digest",
    "flow_run",
    "cancelled",
    "attended_until",
    "masked",
    "shown_yaml",
)
BRIEF_FIELDS = (
    "task_id",
    "attempt",
    "phase",
    *(name for name in TaskRecord.__dataclass_fields__ if name not in {"task_id", "mark", *_LONG}),
)
"""Fields of a record without the long ones."""
RECORD_FIELDS = (*BRIEF_FIELDS, *_LONG)

_PLAIN = tuple(
    name for name in TaskRecord.__dataclass_fields__ if name not in {"mark", "depends_on", "masked", "outline", *_LONG}
)


class SubmittedText(NamedTuple):
    """The text of a submission.

    Attributes:
        raw: As submitted.
        shown: Without secrets; None if it has none.
        masked: Whether `shown` is known.
    """

    raw: str
    shown: str | None
    masked: bool


def hash_arguments(fields: Mapping[str, Value]) -> list[Value]:
    """Return a hash as the scripts expect it: the short fields as one JSON list, then the counted long ones.

    Fewer arguments are faster: the client library spends most of its time on each of them.
    """
    short = [part for name, value in fields.items() if name not in _LONG for part in (name, value)]
    long = [part for name in _LONG if name in fields for part in (name, fields[name])]
    return [json.dumps(short, ensure_ascii=False).encode("utf-8", "surrogatepass"), str(len(long)), *long]


def counted(values: Sequence[Value]) -> list[Value]:
    """Return the number of values and then the values, as the scripts expect them."""
    return [str(len(values)), *values]


def pairs(fields: Mapping[str, Value]) -> list[Value]:
    """Return names and values alternately."""
    return [part for pair in fields.items() for part in pair]


def encode_record(record: TaskRecord, *, text: bool) -> dict[str, Value]:
    """Return the hash of a record; with `text` also the submitted text."""
    phase = record.mark.phase
    fields: dict[str, Value] = {
        "attempt": str(record.mark.attempt),
        "phase": str(int(phase)),
        "status": str(phase.status),
    }
    for name in _PLAIN:
        value = getattr(record, name)
        if value is not None and value != "":
            fields[name] = value if isinstance(value, str) else repr(value)
    if record.depends_on:
        fields["depends_on"] = _dumps(record.depends_on)
    own = ("masked", "outline", "parsed", "shown_parsed", *(("raw_yaml", "shown_yaml") if text else ()))
    encoded = {name: encode_value(name, getattr(record, name)) for name in own}
    return fields | {name: value for name, value in encoded.items() if value is not None}


def encode_submission(submission: Submission) -> dict[str, Value]:
    """Return the hash of a submission; `digest` is always included."""
    encoded = {name: encode_value(name, getattr(submission, name)) for name in SUBMISSION_FIELDS}
    return {"digest": ""} | {name: value for name, value in encoded.items() if value is not None}


def encode_value(name: str, value: Any) -> Value | None:
    """Return the value of one field, or None when it is not stored."""
    if value is None or value is False or value == "":
        return None
    if name in _JSON:
        return (squeeze(_dumps(value)) if name in _LONG else _dumps(value)) if value else None
    if value is True:
        return "1"
    if name in _LONG:
        return squeeze(value)
    return value if isinstance(value, str) else repr(value)


def decode_record(
    values: Found, fields: Sequence[str] = RECORD_FIELDS, text: SubmittedText | None = None
) -> TaskRecord | None:
    """Return the record whose `fields` have these values, or None.

    Args:
        values: Values of the hash.
        fields: Their names.
        text: Text of its submission; None: none.
    """
    text = text or SubmittedText("", None, masked=True)
    found = {name: value for name, value in zip(fields, values, strict=True) if value is not None}
    if "attempt" not in found or "phase" not in found:
        return None
    mark = StatusMark(int(found.pop("attempt")), Phase(int(found.pop("phase"))))
    data: dict[str, Any] = {"raw_yaml": text.raw, "shown_yaml": text.shown, "parsed": {}, "submitted_at": ""}
    data |= {name: decode_value(name, value) for name, value in found.items()}
    data["depends_on"] = tuple(data.get("depends_on", ()))
    data["masked"] = "masked" in found and (text.masked or "raw_yaml" in found)
    return TaskRecord(mark=mark, **data)


def decode_submission(submission_id: str, values: Found) -> Submission | None:
    """Return the submission with these values of `SUBMISSION_FIELDS`, or None."""
    found: dict[str, Any] = {
        name: decode_value(name, value)
        for name, value in zip(SUBMISSION_FIELDS, values, strict=True)
        if value is not None
    }
    if not found:
        return None
    found["task_ids"] = tuple(found.get("task_ids", ()))
    found |= {name: name in found for name in _FLAGS}
    found["digest"] = found.get("digest") or None
    return Submission(submission_id=submission_id, **({"raw_yaml": ""} | found))


def decode_value(name: str, value: bytes) -> Any:
    """Return the value of one stored field."""
    if name in _INTEGERS:
        return int(value)
    if name in _NUMBERS:
        return float(value)
    if name in _FLAGS:
        return True
    text = expand(value) if name in _LONG else value.decode("utf-8", "surrogatepass")
    return json.loads(text) if name in _JSON else text


def squeeze(text: str) -> bytes:
    """Return `text` as bytes, compressed when it is long."""
    data = text.encode("utf-8", "surrogatepass")  # specs may contain half of a surrogate pair
    if len(data) < COMPRESSED_FROM and not data.startswith(_MARK):
        return data
    return _MARK + zlib.compress(data, 1)


def expand(value: bytes) -> str:
    """Return what `squeeze` was given."""
    data = zlib.decompress(value[1:]) if value.startswith(_MARK) else value
    return data.decode("utf-8", "surrogatepass")


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
