"""Rows as data sets: checks that each column has one type before a model is loaded, and keeps nested values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.failures import one_line
from mloc_prefect.execution.protocol import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.executors.training.training_rows import Row


def data_set_of(rows: Sequence[Row]) -> Any:
    """Return rows as a data set that gives them back as they are.

    Columns of nested values whose fields differ are kept as JSON: as Arrow's structs, the arguments of one tool call
    would get those of all others, filled with nulls.
    """
    from datasets import Dataset

    names = dict.fromkeys(name for row in rows for name in row)
    return Dataset.from_list([{name: row.get(name) for name in names} for row in rows], on_mixed_types="use_json")


def check_columns(rows: Sequence[Row]) -> None:
    """Return if the trainer's data set can be built from `rows`.

    Raises:
        UserError: A column has values of incompatible types, such as `"x"` and 1.
    """
    from datasets import Dataset

    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        nested = all(value is None or isinstance(value, (list, dict)) for value in values)
        try:
            Dataset.from_dict({name: values}, on_mixed_types="use_json" if nested else None)
        except (ValueError, TypeError, OverflowError, NotImplementedError) as error:  # pyarrow's are among these
            reason = _types(values) or one_line(error, 300)
            raise UserError(f"spec.data: column {name!r} needs values of one type: {reason}") from error


def _types(values: Sequence[object]) -> str:
    """Return the first two types and where they begin; "" when there is only one."""
    first: dict[str, int] = {}
    for index, value in enumerate(values):
        if value is not None:
            first.setdefault(type(value).__name__, index)
    found = [f"row {index} holds {name} ({str(values[index])[:40]!r})" for name, index in first.items()]
    return " and ".join(found[:2]) if len(found) > 1 else ""
