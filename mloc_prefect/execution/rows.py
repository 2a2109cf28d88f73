"""The journal of finished rows: what a retry need not compute again.

`<task dir>/attempts/<run_count>-<attempt>/items.jsonl`, one object a line: `{"index", "key", "output",
"finish_reason", "usage", "error"}` and what the executor adds. Attempts never share a file. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mloc_prefect.execution.wire import dumps, to_bytes

if TYPE_CHECKING:
    from types import TracebackType

Row = dict[str, Any]

JOURNAL = "items.jsonl"
_OFFSET_BITS = 48  # a place is file number << 48 | offset: one int a row, so that a million rows stay small in memory


def row_key(*, prompt: str, model: str, revision: str | None, sampling: Mapping[str, Any]) -> str:
    """Return the identity of one row's work: sha256 (hex) of rendered prompt, model and sampling parameters."""
    text = dumps([prompt, model, revision, dict(sorted(sampling.items()))])
    return hashlib.sha256(to_bytes(text)).hexdigest()


class RowJournal:
    """Rows of one task: reads all its attempts, writes this one. Safe to use from several threads.

    Args:
        task_dir: Directory of the task.
        attempt_dir: Directory of this attempt.
    """

    def __init__(self, task_dir: Path, attempt_dir: Path) -> None:
        self._task_dir = task_dir
        self._own = attempt_dir / JOURNAL
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._torn = False
        self._files: list[Path] = [self._own]
        self._good: dict[int, int] = {}
        self._bad: dict[int, int] = {}
        self.reused = 0

    def __enter__(self) -> RowJournal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def completed(self, keys: Sequence[str]) -> Mapping[int, Row]:
        """Return the rows that need no more work, by index, read from every attempt of the task.

        Dropped are lines that a crash tore, rows whose key is not `keys[index]` (the prompt, the model or the sampling
        changed since), and rows that ended with an error. Rows are read from the file when asked for.

        Args:
            keys: The key of each row, in index order.
        """
        with self._lock:
            self._good.clear()
            self._bad.clear()
            self._files = [*_earlier(self._task_dir, self._own), self._own]
            for number, path in enumerate(self._files):
                self._scan(number, path, keys)
            own = len(self._files) - 1
            self.reused = sum(1 for place in self._good.values() if place >> _OFFSET_BITS != own)
            return _Rows(tuple(self._files), dict(self._good))

    def append(
        self,
        index: int,
        key: str,
        *,
        output: Any,
        finish_reason: str | None = None,
        usage: Mapping[str, Any] | None = None,
        error: str | None = None,
        **extra: Any,
    ) -> None:
        """Write one finished row at once, so that a crash a moment later cannot take it back.

        Args:
            index: Place of the row in the input, from 0.
            key: Its `row_key`.
            output: What the row gave, JSON-ready.
            finish_reason: Why it ended there.
            usage: Counts of this row, e.g. `{"prompt_tokens": 5, "completion_tokens": 8}`.
            error: Why it could not be processed; such a row is tried again by the next attempt.
            extra: Further keys of the row.

        Raises:
            OSError: The line could not be written whole (disk full).
        """
        row = {
            "index": index,
            "key": key,
            "output": output,
            "finish_reason": finish_reason,
            "usage": dict(usage) if usage is not None else None,
            "error": error,
            **extra,
        }
        line = to_bytes(dumps(row)) + b"\n"
        with self._lock:
            place = (len(self._files) - 1) << _OFFSET_BITS | self._write(line)
            (self._good if error is None else self._bad)[index] = place

    def items(self, total: int) -> Iterator[Row]:
        """Yield the rows 0 to `total - 1` that exist, in index order, as they stand in a result [protocol 5].

        The last good row of an index wins, else the last one with an error. Only rows that `completed` accepted and
        rows of this journal count. `key` and `usage` are left out, and `error` where there is none.
        """
        for row in self._chosen(total):
            row.pop("key", None)
            row.pop("usage", None)
            if row.get("error") is None:
                row.pop("error", None)
            yield row

    def usage(self, total: int) -> dict[str, float]:
        """Return the sums of the numbers in `usage` over the rows that `items` yields."""
        sums: dict[str, float] = {}
        for row in self._chosen(total):
            for name, value in (row.get("usage") or {}).items():
                if isinstance(value, int | float):
                    sums[name] = sums.get(name, 0) + value
        return sums

    def __len__(self) -> int:
        """Return how many rows are done, earlier attempts included."""
        with self._lock:
            return len(self._good)

    def failed(self) -> list[int]:
        """Return the indices that have only rows with an error."""
        with self._lock:
            return sorted(set(self._bad) - set(self._good))

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def _chosen(self, total: int) -> Iterator[Row]:
        with self._lock:
            places = {**self._bad, **self._good}
            rows = _Rows(tuple(self._files), places)
        for index in range(total):
            if index in places:
                yield rows[index]

    def _scan(self, number: int, path: Path, keys: Sequence[str]) -> None:
        for offset, row in _read(path):
            index = row.get("index")
            if not isinstance(index, int) or not 0 <= index < len(keys) or row.get("key") != keys[index]:
                continue
            place = number << _OFFSET_BITS | offset
            (self._good if row.get("error") is None else self._bad)[index] = place

    def _write(self, line: bytes) -> int:
        """Append `line` by one write and return its offset."""
        if self._fd is None:
            self._own.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._own, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            size = os.fstat(self._fd).st_size
            self._torn = size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"
        if self._torn:  # never glue a row to the remains of one that a crash cut short
            os.write(self._fd, b"\n")
            self._torn = False
        offset = os.fstat(self._fd).st_size
        written = os.write(self._fd, line)
        if written != len(line):
            self._torn = True
            raise OSError(
                f"only {written} of {len(line)} bytes of a row were written to {self._own}; is the disk full?"
            )
        return offset


class _Rows(Mapping[int, Row]):
    """Rows by index, read from their files on use."""

    def __init__(self, files: tuple[Path, ...], places: dict[int, int]) -> None:
        self._files = files
        self._places = places
        self._open: dict[int, IO[bytes]] = {}

    def __getitem__(self, index: int) -> Row:
        place = self._places[index]
        number = place >> _OFFSET_BITS
        if number not in self._open:
            self._open[number] = self._files[number].open("rb")
        handle = self._open[number]
        handle.seek(place & ((1 << _OFFSET_BITS) - 1))
        row: Row = json.loads(handle.readline())
        return row

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, index: object) -> bool:
        return index in self._places

    def __del__(self) -> None:
        for handle in self._open.values():
            handle.close()


def _earlier(task_dir: Path, own: Path) -> list[Path]:
    """Return the journals of the other attempts, oldest first."""
    found = [path for path in (task_dir / "attempts").glob(f"*/{JOURNAL}") if path != own]
    return sorted(found, key=lambda path: ([int(n) for n in re.findall(r"\d+", path.parent.name)], path.parent.name))


def _read(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield offset and object of every line that is whole; an object cut short anywhere is no JSON."""
    try:
        handle = path.open("rb")
    except FileNotFoundError:
        return
    with handle:
        offset = 0
        for line in handle:
            here, offset = offset, offset + len(line)
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield here, row
