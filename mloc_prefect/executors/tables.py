"""Rows of data files: json lines, json, csv and parquet, plain or gzipped, local or behind fsspec URLs."""

from __future__ import annotations

import csv
import io
import itertools
import json
import zlib
from typing import IO, TYPE_CHECKING, Any

from mloc_prefect.artifacts.datafiles import open_binary
from mloc_prefect.artifacts.delivery import shown_text
from mloc_prefect.execution.protocol import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mloc_prefect.executors.splits import Split

Row = dict[str, Any]


def read_split(files: Sequence[str], split: Split) -> list[Row]:
    """Return the wanted rows of one split, in order.

    Args:
        files: Paths or URLs of the files that make up the split, in order.
        split: Which rows; reading stops early when the slice allows it.

    Raises:
        UserError: A file cannot be read, is not of its form, or is of a form that we do not read; one line.
    """
    rows = list(itertools.islice(_all_rows(files), split.enough))
    wanted = split.rows(len(rows))
    return rows[wanted.start : wanted.stop]


def _all_rows(files: Sequence[str]) -> Iterator[Row]:
    for file in files:
        shown = shown_text(file)
        reader = _reader(file)
        try:
            with open_binary(file) as stream:
                yield from reader(stream, shown)
        except UnicodeDecodeError as error:
            raise UserError(f"{shown} is not UTF-8 text: {error.reason} at byte {error.start}") from None
        except (OSError, EOFError, zlib.error, csv.Error, ImportError) as error:
            raise UserError(f"{shown} cannot be read: {shown_text(' '.join(str(error).split()))}") from None


def _reader(file: str) -> Callable[[IO[bytes], str], Iterator[Row]]:
    readers = {"jsonl": _json_lines, "ndjson": _json_lines, "json": _json, "csv": _csv, "parquet": _parquet}
    shown = shown_text(file)
    for name in (file, shown):  # as it is, since `#` may be part of it; without its query, as signed URLs have one
        suffix = name.lower().removesuffix(".gz").rpartition(".")[2]
        if suffix in readers:
            return readers[suffix]
    raise UserError(f"{shown} is not a data file; known endings: .jsonl, .json, .csv, .parquet, each also with .gz")


def _json_lines(stream: IO[bytes], file: str) -> Iterator[Row]:
    for number, line in enumerate(io.TextIOWrapper(stream, encoding="utf-8-sig"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{file}:{number}:{error.colno}: not valid JSON: {error.msg}") from None
        if not isinstance(row, dict):
            raise UserError(f"{file}:{number}: each line must be a JSON object, found {type(row).__name__}")
        yield row


def _json(stream: IO[bytes], file: str) -> Iterator[Row]:
    """Read a list of objects, a mapping of columns to lists, or (misnamed) JSON lines."""
    text = stream.read().decode("utf-8-sig")
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from _json_lines(io.BytesIO(text.encode()), file)
            return
        raise UserError(f"{file}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    if isinstance(data, dict) and data and all(isinstance(column, list) for column in data.values()):
        if len({len(column) for column in data.values()}) > 1:
            raise UserError(f"{file}: the columns differ in length")
        data = [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]
    elif isinstance(data, dict):
        data = [data]
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise UserError(f"{file}: must be a list of objects, or a mapping of columns to lists")
    yield from data


def _csv(stream: IO[bytes], file: str) -> Iterator[Row]:
    """Read comma-separated text; every value stays text, so that `007` is not turned into 7."""
    reader = csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
    for row in reader:
        if None in row:
            raise UserError(f"{file}:{reader.line_num}: more values than the {len(reader.fieldnames or ())} columns")
        yield dict(row)


def _parquet(stream: IO[bytes], file: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file} is not a parquet file: {' '.join(str(error).split())}") from None
