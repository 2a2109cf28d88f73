"""The journal of finished rows, which retries reuse instead of computing rows again.

`<task dir>/attempts/<run_count>-<attempt>/items.jsonl`, one object per line: `{"index", "key", "output",
"finish_reason", "usage", "error"}` and keys that the executor adds. Attempts never share a file. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mloc_prefect.execution.line_file import LineFile, files_of_attempts, objects_of
from mloc_prefect.execution.wire import dumps, to_bytes

if TYPE_CHECKING:
    from types import TracebackType

Row = dict[str, Any]

JOURNAL = "items.jsonl"
_OFFSET_BITS = 48  # a location is file number << 48 | offset: one int per row keeps a million rows small in memory


def row_key(*, prompt: str, model: str, revision: str | None, sampling: Mapping[str, Any]) -> str:
    """Return the identity of one row: SHA-256 (hex) of rendered prompt, model and sampling parameters."""
    text = dumps([prompt, model, revision, dict(sorted(sampling.items()))])
    return hashlib.sha256(to_bytes(text)).hexdigest()


class RowJournal:
    """Rows of one task: reads those of all attempts, writes those of this one. Thread-safe.

    Args:
        task_dir: Directory of the task.
        attempt_dir: Directory of this attempt.
    """

    def __init__(self, task_dir: Path, attempt_dir: Path) -> None:
        self._task_dir = task_dir
        self._path = attempt_dir / JOURNAL
        self._lock = threading.Lock()
        self._lines = LineFile(self._path)
        self._files: list[Path] = [self._path]
        self._succeeded: dict[int, int] = {}
        self._failed: dict[int, int] = {}
        self.reused = 0

    def __enter__(self) -> RowJournal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def completed(self, keys: Sequence[str]) -> Mapping[int, Row]:
        """Return the rows that need no more work, by index, read from all attempts of the task.

        Three kinds of lines are dropped: those cut short by a crash, those whose key is not `keys[index]` (prompt,
        model or sampling have changed since), and rows that failed. Rows are read from the file on access.

        Args:
            keys: The key of each row, in index order.
        """
        found = files_of_attempts(self._task_dir, JOURNAL)
        with self._lock:
            self._succeeded.clear()
            self._failed.clear()
            self._files = [*(path for path in found if path != self._path), self._path]
            for number, path in enumerate(self._files):
                self._scan(number, path, keys)
            current = len(self._files) - 1
            self.reused = sum(1 for location in self._succeeded.values() if location >> _OFFSET_BITS != current)
            return _JournalRows(tuple(self._files), dict(self._succeeded))

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
        """Write one finished row at once, so that it survives a crash.

        Args:
            index: Index of the row in the input, from 0.
            key: Its `row_key`.
            output: Output of the row, JSON-ready.
            finish_reason: Why generation ended.
            usage: Token counts of this row, e.g. `{"prompt_tokens": 5, "completion_tokens": 8}`.
            error: Why the row failed; the next attempt tries it again.
            extra: Further keys of the row.

        Raises:
            OSError: The line could not be written completely (disk full).
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
            location = (len(self._files) - 1) << _OFFSET_BITS | self._lines.append(line)
            (self._succeeded if error is None else self._failed)[index] = location

    def items(self, total: int) -> Iterator[Row]:
        """Yield the existing rows among 0 to `total - 1`, in index order, in the form of a result [protocol 5].

        The last successful row of an index wins, else the last failed one. Only rows that `completed` accepted and
        rows of this journal count. `key` and `usage` are left out, and `error` where it is null.
        """
        for row in self._latest_rows(total):
            row.pop("key", None)
            row.pop("usage", None)
            if row.get("error") is None:
                row.pop("error", None)
            yield row

    def usage(self, total: int) -> dict[str, float]:
        """Return the sums of the numbers in `usage` over the rows of `items`."""
        sums: dict[str, float] = {}
        for row in self._latest_rows(total):
            for name, value in (row.get("usage") or {}).items():
                if isinstance(value, int | float):
                    sums[name] = sums.get(name, 0) + value
        return sums

    def __len__(self) -> int:
        """Return the number of successful rows, those of earlier attempts included."""
        with self._lock:
            return len(self._succeeded)

    def failed(self) -> list[int]:
        """Return the indices of rows that only ever failed."""
        with self._lock:
            return sorted(set(self._failed) - set(self._succeeded))

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        with self._lock:
            self._lines.close()

    def _latest_rows(self, total: int) -> Iterator[Row]:
        with self._lock:
            locations = {**self._failed, **self._succeeded}
            rows = _JournalRows(tuple(self._files), locations)
        for index in range(total):
            if index in locations:
                yield rows[index]

    def _scan(self, number: int, path: Path, keys: Sequence[str]) -> None:
        for offset, row in objects_of(path):
            index = row.get("index")
            if not isinstance(index, int) or not 0 <= index < len(keys) or row.get("key") != keys[index]:
                continue
            location = number << _OFFSET_BITS | offset
            (self._succeeded if row.get("error") is None else self._failed)[index] = location


class _JournalRows(Mapping[int, Row]):
    """Rows by index, read from their files on access."""

    def __init__(self, files: tuple[Path, ...], locations: dict[int, int]) -> None:
        self._files = files
        self._locations = locations
        self._open: dict[int, IO[bytes]] = {}

    def __getitem__(self, index: int) -> Row:
        location = self._locations[index]
        number = location >> _OFFSET_BITS
        if number not in self._open:
            self._open[number] = self._files[number].open("rb")
        handle = self._open[number]
        handle.seek(location & ((1 << _OFFSET_BITS) - 1))
        row: Row = json.loads(handle.readline())
        return row

    def __iter__(self) -> Iterator[int]:
        return iter(self._locations)

    def __len__(self) -> int:
        return len(self._locations)

    def __contains__(self, index: object) -> bool:
        return index in self._locations

    def __del__(self) -> None:
        for handle in self._open.values():
            handle.close()
