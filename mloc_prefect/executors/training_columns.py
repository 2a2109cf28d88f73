"""Columns of the rows as the libraries keep them: each of one type, which is checked before a model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mloc_prefect.execution.protocol import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.executors.training_data import Row


def check_columns(rows: Sequence[Row]) -> None:
    """Return if the trainer's data set can be made of `rows`.

    Raises:
        UserError: A column has values of types that do not go together, as `"x"` and 1.
    """
    from datasets import Dataset

    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        try:
            Dataset.from_dict({name: values})
        except (ValueError, TypeError, OverflowError, NotImplementedError) as error:  # pyarrow's are among these
            reason = _types(values) or " ".join(str(error).split())[:300]
            raise UserError(f"spec.data: column {name!r} needs values of one type: {reason}") from error


def _types(values: Sequence[object]) -> str:
    """Return the first two types and where they begin; nothing when there is one only."""
    first: dict[str, int] = {}
    for index, value in enumerate(values):
        if value is not None:
            first.setdefault(type(value).__name__, index)
    told = [f"row {index} holds {name} ({str(values[index])[:40]!r})" for name, index in first.items()]
    return " and ".join(told[:2]) if len(told) > 1 else ""
