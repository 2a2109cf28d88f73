"""Reads rows from text: JSON lines, JSON and CSV, strictly: what has two readings is an error with its line."""

from __future__ import annotations

import csv
import itertools
import json
import re
import sys
from typing import IO, TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mloc_prefect.executors.sources.data_tables import Row

_MARK = "\ufeff"
_WIDE_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_RETURN = re.compile(r"(?<=\r)(?!\n)")  # the end of a line on old Macs
_SEPARATOR = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)  # the first line by which Excel knows what separates
_SHOWN = 40  # characters of a name in messages

csv.field_size_limit(sys.maxsize)  # of the whole process; the default refuses texts of more than 131072 characters


class _DuplicateKeyError(ValueError):
    """An object of JSON has one key twice."""


def json_lines(stream: IO[bytes], file: str) -> Iterator[Row]:
    """Yield the rows of a file with one JSON object per line; blank lines are skipped.

    Raises:
        UserError: A line is not a JSON object.
    """
    yield from _rows_of_lines(text_lines(stream, file), file)


def json_table(stream: IO[bytes], file: str) -> Iterator[Row]:
    """Yield the rows of a JSON file: a list of objects, columns as lists, JSON lines, or a form of pandas `to_json`.

    Raises:
        UserError: It has another form.
    """
    text = "".join(text_lines(stream, file))
    try:
        data = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from _rows_of_lines(text.split("\n"), file)
            return
        raise UserError(f"{file}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{file}: {_fault(error)}") from None
    yield from _table(data, file)


def csv_table(stream: IO[bytes], file: str, separator: str = ",") -> Iterator[Row]:
    """Yield the rows of comma-separated text; every value stays text, so that `007` does not become 7.

    A first line `sep=;`, as Excel has it, names another separator. Columns at the end without a name, as spreadsheets
    leave them, are dropped when they are empty.

    Raises:
        UserError: A column occurs twice, a quote stays open, or a row has more or fewer values than there are columns.
    """
    lines = text_lines(stream, file)
    head = next(lines, "")
    named = _SEPARATOR.fullmatch(head)
    before = 1 if named else 0
    reader = csv.reader(
        lines if named else itertools.chain([head], lines), strict=True, delimiter=named[1] if named else separator
    )
    columns: list[str] | None = None
    spare = 0
    while True:
        first = reader.line_num + 1 + before  # a row with an open quote goes on to the end of the file
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{file}:{first}: not valid CSV: {error}") from None
        if values is None:
            return
        if not values:  # a blank line
            continue
        if columns is None:
            columns = values
            _check_separator(columns, file, first, separator, declared=named is not None)
            spare = _spare_columns(columns)
            _check_columns(columns[: len(columns) - spare], file, first)
            continue
        if len(values) != len(columns):
            raise UserError(f"{file}:{first}: {_count(values)} for {len(columns)} columns")
        kept = len(columns) - spare
        if any(value.strip() for value in values[kept:]):
            raise UserError(f"{file}:{first}: a value in one of the last {spare} columns, which have no name")
        yield dict(zip(columns[:kept], values[:kept], strict=True))


def text_lines(stream: IO[bytes], file: str) -> Iterator[str]:
    """Yield the lines of UTF-8 text with their ends; a byte-order mark at the start is dropped.

    Raises:
        UserError: A line is not UTF-8, or starts with a byte-order mark after the first.
    """
    number = 0
    for raw in stream:
        if number == 0 and (raw[:2] in _WIDE_MARKS or b"\x00" in raw[:2]):
            raise UserError(f"{file} is {_WIDE_MARKS.get(raw[:2], 'UTF-16')} text; save it as UTF-8")
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            position = f"{file}:{number + 1}"
            found = f"found byte 0x{raw[error.start]:02x} after {error.start} bytes of the line"
            raise UserError(f"{position}: not UTF-8 text: {error.reason} ({found}); save the file as UTF-8") from None
        for part in _RETURN.split(line) if "\r" in line[:-2] else (line,):
            number += 1
            if number > 1 and part.startswith(_MARK):
                raise UserError(
                    f"{file}:{number}: a byte-order mark (U+FEFF) in the middle of the file, as where two files "
                    "were put together; remove this character"
                )
            yield part.removeprefix(_MARK)


def check_names(names: Iterable[str], file: str) -> None:
    """Refuse columns of which a dictionary would keep only the last.

    Raises:
        UserError: A name occurs twice.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{file}: column {_short(name)} occurs twice; rename one of the two")
        seen.add(name)


def _spare_columns(columns: Sequence[str]) -> int:
    """Return how many columns at the end have no name; a single column has a right to none."""
    named = [number for number, name in enumerate(columns, start=1) if name.strip()]
    return len(columns) - named[-1] if named else 0


def _check_separator(columns: Sequence[str], file: str, line: int, separator: str, *, declared: bool) -> None:
    """Refuse a file of one column whose name holds several, as spreadsheets write them in many countries."""
    if len(columns) > 1 or separator != "," or declared:
        return
    if ";" in columns[0]:
        fix = "save the file with commas, or write sep=; as its first line"
        raise UserError(f"{file}:{line}: the columns are separated by semicolons, not by commas; {fix}")
    if "\t" in columns[0]:
        fix = "save the file with commas, or give it the ending .tsv"
        raise UserError(f"{file}:{line}: the columns are separated by tabs, not by commas; {fix}")


def _check_columns(columns: Sequence[str], file: str, line: int) -> None:
    blank = [number for number, name in enumerate(columns, start=1) if not name.strip()]
    if len(blank) > 1:
        raise UserError(f"{file}:{line}: columns {blank[0]} and {blank[1]} have no name")
    check_names(columns, f"{file}:{line}")


def _parsed(line: str, file: str, number: int) -> Any:
    try:
        return json.loads(line, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        whole = number == 1 and (line.strip() == "{" or line.lstrip().startswith("["))
        if whole:  # it goes on in the next line
            raise UserError(
                f"{file}:1: each line must be a JSON object; give the file the ending .json if it is one JSON document"
            ) from None
        comma = error.msg == "Extra data" and line[error.pos :].strip() == ","
        fault = "a comma after the object; JSON lines are not separated by commas" if comma else error.msg
        raise UserError(f"{file}:{number}:{error.colno}: not valid JSON: {fault}") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{file}:{number}: {_fault(error)}") from None


def _fault(error: Exception) -> str:
    """Return what is wrong with JSON whose syntax is right."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, _DuplicateKeyError):
        return f"key {error} occurs twice in one object"
    return f"not valid JSON: {error}"  # a number of thousands of digits


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _DuplicateKeyError(_short(next(key for key in keys if keys.count(key) > 1)))
    return found


def _rows_of_lines(lines: Iterable[str], file: str) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _parsed(line, file, number)
        if not isinstance(row, dict):
            raise UserError(f"{file}:{number}: each line must be a JSON object, found {type(row).__name__}")
        yield row


def _table(data: Any, file: str) -> list[Row]:
    """Return the rows of a parsed JSON file."""
    if isinstance(data, dict):
        data = _pandas_rows(data, file)
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise UserError(f"{file}: must be a list of objects, or a mapping of columns to lists")
    return data


def _pandas_rows(data: dict[str, Any], file: str) -> list[Any]:
    """Return the rows of an object: columns of lists, `columns`, `split` and `table` of pandas, or one row."""
    values = list(data.values())
    if set(data) in ({"columns", "index", "data"}, {"columns", "data"}) and all(isinstance(v, list) for v in values):
        check_names(map(str, data["columns"]), file)
        if any(not isinstance(row, list) or len(row) != len(data["columns"]) for row in data["data"]):
            raise UserError(f"{file}: a row of 'data' has another length than 'columns'")
        return [dict(zip(map(str, data["columns"]), row, strict=True)) for row in data["data"]]
    if set(data) == {"schema", "data"} and isinstance(data["schema"], dict) and isinstance(data["data"], list):
        return list(data["data"])
    if data and all(isinstance(column, list) and not _holds_mappings(column) for column in values):
        if len({len(column) for column in values}) > 1:
            raise UserError(f"{file}: the columns differ in length")
        return [dict(zip(data, row, strict=True)) for row in zip(*values, strict=True)]
    index = list(values[0]) if data and isinstance(values[0], dict) else []
    framed = index and all(isinstance(column, dict) and list(column) == index for column in values)
    if framed and all(key.isdecimal() for key in index):  # what `to_json` writes without `orient`
        return [{name: column[key] for name, column in data.items()} for key in index]
    return [data]


def _holds_mappings(column: list[Any]) -> bool:
    """Return whether a list is no column: the messages of one chat are a value of one row."""
    return any(isinstance(value, dict) for value in column)


def _count(values: Sequence[str]) -> str:
    return f"{len(values)} value{'s' if len(values) != 1 else ''}"


def _short(name: str) -> str:
    return repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")
