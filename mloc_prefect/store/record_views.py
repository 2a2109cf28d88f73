"""What clients see of a record: its spec without secrets, and an outline instead of a long spec in lists.

Both are made once, when a record is stored, so that a request costs no work on texts. Records of earlier versions have
neither; for them it is done on request, in a thread. [protocol 7, quirk 15]
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mloc_prefect.spec.secrets import mask_document, mask_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.store.records import Submission, TaskRecord

OUTLINED_FROM = 4096
"""Characters of a text, or of a document as JSON, from which lists have an outline instead."""

_NAMED = ("apiVersion", "kind")
_LONGEST_NAME = 256  # characters of a name in an outline


def masked_submission(submission: Submission) -> Submission:
    """Return a submission with the text that clients see."""
    shown = mask_text(submission.raw_yaml)
    return replace(submission, masked=True, shown_yaml=shown if shown != submission.raw_yaml else None)


def with_views(record: TaskRecord, submission: Submission | None = None) -> TaskRecord:
    """Return a record with what clients see of it.

    Args:
        record: The record with its whole spec.
        submission: Its submission as `masked_submission` returns it; None: the text is masked again.
    """
    if submission is None:
        shown = mask_text(record.raw_yaml)
        shown_yaml = shown if shown != record.raw_yaml else None
    else:
        shown_yaml = submission.shown_yaml
    parsed = mask_document(record.parsed)
    return replace(
        record,
        masked=True,
        shown_yaml=shown_yaml,
        shown_parsed=parsed if parsed != record.parsed else None,
        outline=_outline(record),
    )


def without_secrets(record: TaskRecord) -> TaskRecord:
    """Return a record whose spec holds no secret with what clients see of it."""
    return replace(record, masked=True, shown_yaml=None, shown_parsed=None, outline=_outline(record))


async def viewed(records: Sequence[TaskRecord]) -> Sequence[TaskRecord]:
    """Return records with what clients see of them; those of earlier versions are masked in a thread."""
    if all(record.masked for record in records):
        return records
    return await asyncio.to_thread(lambda: [r if r.masked else with_views(r) for r in records])


def whole_answer(record: TaskRecord) -> dict[str, Any]:
    """Return the answer about one record that has its views."""
    data = record.to_dict()
    if record.shown_yaml is not None:
        data["raw_yaml"] = record.shown_yaml
    if record.shown_parsed is not None:
        data["parsed"] = record.shown_parsed
    return data


def list_answer(record: TaskRecord) -> dict[str, Any]:
    """Return a record's entry in a list: of a long spec only an outline; `raw_yaml` is then null."""
    data = whole_answer(record)
    if record.outline is not None:
        data |= {"raw_yaml": None, "parsed": record.outline}
    return data


def _outline(record: TaskRecord) -> dict[str, Any] | None:
    """Return what lists show of a long spec: kind, name and task type; None for a short one."""
    if not _is_long(record):
        return None
    parsed = record.parsed
    metadata, spec = parsed.get("metadata"), parsed.get("spec")
    outline = {key: _short(parsed[key]) for key in _NAMED if key in parsed}
    if isinstance(metadata, Mapping) and "name" in metadata:
        outline["metadata"] = {"name": _short(metadata["name"])}
    if isinstance(spec, Mapping) and "taskType" in spec:
        outline["spec"] = {"taskType": _short(spec["taskType"])}
    return outline


def _is_long(record: TaskRecord) -> bool:
    if len(record.raw_yaml) >= OUTLINED_FROM:
        return True
    if "*" not in record.raw_yaml and record.raw_yaml:  # without aliases a document is no longer than its text
        return False
    return len(json.dumps(record.parsed)) >= OUTLINED_FROM


def _short(value: Any) -> Any:
    return value[:_LONGEST_NAME] if isinstance(value, str) else value if isinstance(value, int | float | bool) else None
