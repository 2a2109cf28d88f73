"""Reads data files: JSON lines, JSON, CSV and Parquet, plain or compressed, local or at fsspec URLs."""

from __future__ import annotations

import itertools
import lzma
import zlib
from typing import IO, TYPE_CHECKING, Any

from mloc_prefect.artifacts.data_files import (
    KNOWN_ENDINGS,
    data_form,
    is_data_file,
    open_binary,
    partition_columns,
)
from mloc_prefect.artifacts.transfer.outgoing import TransferError, is_passing, shown_text
from mloc_prefect.execution.failures import one_line
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.sources.text_tables import check_names, csv_table, json_lines, json_table
from mloc_prefect.tasks.chat_messages import without_padding
from mloc_prefect.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mloc_prefect.executors.sources.splits import Split

Row = dict[str, Any]

_POINTER = b"version https://git-lfs.github.com/spec/"


def read_split(files: Sequence[str], split: Split) -> list[Row]:
    """Return the rows of one split in order.

    Args:
        files: Paths or URLs of the files of the split, in order.
        split: The split and its slice; reading stops early when the slice allows it.

    Raises:
        UserError: A file cannot be read, is malformed, or has an unknown format; one line.
    """
    rows = list(itertools.islice(_all_rows(files), split.rows_to_read))
    wanted = split.rows(len(rows))
    return rows[wanted.start : wanted.stop]


def _all_rows(files: Sequence[str]) -> Iterator[Row]:
    for file in files:
        shown = shown_text(file)
        reader = _reader(file)
        try:
            with open_binary(file) as stream:
                _refuse_pointer(stream, shown)
                more = partition_columns(file)
                for row in reader(stream, shown):
                    yield {**more, **row} if more else row
        except (OSError, EOFError, zlib.error, lzma.LZMAError, ImportError, ValueError) as error:
            text = f"{shown} cannot be read: {shown_text(one_line(error))}"
            if local_path(file) is None and is_passing(error):
                raise TransferError(text, retryable=True) from error
            raise UserError(text) from None


def _reader(file: str) -> Callable[[IO[bytes], str], Iterator[Row]]:
    shown = shown_text(file)
    for name in (file, shown):  # unchanged, since `#` may be part of the name; without query, as signed URLs have one
        if is_data_file(name):
            return _READERS[data_form(name).partition(".")[0]]
    raise UserError(f"{shown} is not a data file; known endings: {KNOWN_ENDINGS}")


def _refuse_pointer(stream: IO[bytes], file: str) -> None:
    """Refuse what Git leaves in place of a large file that was not fetched."""
    start = stream.read(len(_POINTER)) if stream.seekable() else b""
    if start == _POINTER:
        raise UserError(f"{file} is a pointer of Git LFS, not the data; fetch it with: git lfs pull")
    if start:
        stream.seek(0)


def _tabs(stream: IO[bytes], file: str) -> Iterator[Row]:
    return csv_table(stream, file, "\t")


def _parquet(stream: IO[bytes], file: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(stream)
        check_names(table.schema_arrow.names, file)
        for batch in map(_with_short_numbers, table.iter_batches(batch_size=1024)):
            yield from ({name: without_padding(value) for name, value in row.items()} for row in batch.to_pylist())
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file} is not a parquet file: {one_line(error)}") from None


def _with_short_numbers(batch: Any) -> Any:
    """Return a batch whose numbers of 32 and 16 bits are those that were written: 0.1, not 0.10000000149011612."""
    import pyarrow

    for at, field in enumerate(batch.schema):
        if pyarrow.types.is_float32(field.type) or pyarrow.types.is_float16(field.type):
            written = batch.column(at).cast(pyarrow.string()).cast(pyarrow.float64())
            batch = batch.set_column(at, field.with_type(pyarrow.float64()), written)
    return batch


_READERS = {
    "jsonl": json_lines,
    "ndjson": json_lines,
    "json": json_table,
    "csv": csv_table,
    "tsv": _tabs,
    "parquet": _parquet,
}
