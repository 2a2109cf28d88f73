"""The columns that rules compare answers with, and the rows without a value there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.training.rewards.number_reading import last_number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_COMPARING = ("exact", "numeric")
_LISTED = 5  # rows named in a message


@dataclass(frozen=True, slots=True)
class AnswerColumn:
    """A column that one rule reads.

    Attributes:
        path: Path of the rule in the spec.
        rule: Its name.
        column: The column.
    """

    path: str
    rule: str
    column: str


def answer_columns(spec: SpecReader) -> list[AnswerColumn]:
    """Return the columns that `spec.rewards` read."""
    rules = [SpecReader(entry, f"spec.rewards[{index}]") for index, entry in enumerate(spec.get("rewards") or [])]
    named = [(rule, rule.text("name") or "") for rule in rules if rule.text("path") is None]
    return [AnswerColumn(rule.path, name, answer_column(rule)) for rule, name in named if name in _COMPARING]


def answer_column(rule: SpecReader) -> str:
    """Return the column that a rule reads."""
    return rule.text("answer_column") or "answer"


def wanted_texts(row: Mapping[str, Any], column: str) -> list[str]:
    """Return the texts in a column; a list holds several right answers, and no value is none."""
    value = row.get(column)
    return [_written(item) for item in (value if isinstance(value, (list, tuple)) else [value]) if not _is_empty(item)]


def with_answers(
    rows: Sequence[dict[str, Any]], numbers: Sequence[int], wanted: Sequence[AnswerColumn]
) -> tuple[list[int], list[str]]:
    """Return the positions of the rows that have a value in each column, and notes about the others.

    Args:
        rows: The rows.
        numbers: Number of each row in the data, for messages.
        wanted: From `answer_columns`.

    Raises:
        UserError: A column is missing, empty in all rows, or holds mappings.
    """
    kept, notes = list(range(len(rows))), []
    for need in wanted:
        columns = sorted({name for row in rows for name in row} - {"prompt"})
        if need.column not in columns:
            raise UserError(f"{need.path} needs the column '{need.column}' in the data; columns: {columns}")
        for at in kept:
            if isinstance(rows[at].get(need.column), (dict, bytes)):
                kind = type(rows[at][need.column]).__name__
                where = f"row {numbers[at]}, column '{need.column}'"
                raise UserError(f"{where}: {need.path} compares texts and numbers, found {kind}")
        empty = [at for at in kept if not wanted_texts(rows[at], need.column)]
        if len(empty) == len(kept):
            raise UserError(f"{need.path}: no row has a value in column '{need.column}'")
        if empty:
            text = f"{len(empty)} of {len(rows)} rows are left out: they have no value in column '{need.column}', which"
            notes.append(f"{text} {need.path} reads ({_listed([numbers[at] for at in empty])})")
            kept = [at for at in kept if at not in set(empty)]
        if need.rule == "numeric":
            notes += _without_number(need, [(numbers[at], rows[at]) for at in kept])
    return kept, notes


def _without_number(need: AnswerColumn, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> list[str]:
    bad = [number for number, row in rows if not any(map(last_number, wanted_texts(row, need.column)))]
    if not bad:
        return []
    text = f"{len(bad)} of {len(rows)} rows have no number in column '{need.column}', so {need.path} gives them 0"
    return [f"{text} ({_listed(bad)})"]


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:_LISTED]))
    return f"{'row' if len(numbers) == 1 else 'rows'} {shown}{', ...' if len(numbers) > _LISTED else ''}"


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip()


def _written(value: Any) -> str:
    """Return a value as text: a whole number without a decimal point, a date in ISO form."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)
