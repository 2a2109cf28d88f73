"""`TaskResult`: the result of a finished task for Python: rows, tables, metrics and files. [protocol 5]."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts.layout import METRICS, RESPONSES
from mloc_prefect.artifacts.manifest import read_manifest
from mloc_prefect.errors import ArtifactError, MissingExtraError
from mloc_prefect.plan.resolve import with_result_level

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    import pandas
    import pyarrow

_ROWS = ("items", "queries")
_NUMBERS = ("usage", "metrics")


class TaskResult:
    """The result of one task.

        result = outcome.task("answers").result
        texts = [row["output"] for row in result.rows()]
        frame = result.to_pandas()

    Args:
        document: Content of `responses.json`, with or without an envelope.
        directory: Directory of the task with its files; None if they are not on this machine.
    """

    def __init__(self, document: Any, *, directory: Path | None = None) -> None:
        self.document = document
        self.directory = directory

    @classmethod
    def read(cls, path: Path) -> TaskResult:
        """Read a result file whole.

        Args:
            path: `responses.json`; the files of the task are those beside it.

        Raises:
            ArtifactError: It is not on this machine, or is not JSON.
        """
        try:
            return cls(json.loads(path.read_bytes()), directory=path.parent)
        except FileNotFoundError:
            raise ArtifactError(
                f"{path} is not on this machine", hint="share the results root, or fetch it with `MlocClient.result`"
            ) from None
        except (OSError, ValueError) as error:
            raise ArtifactError(f"cannot read {path}: {error}") from None

    def __repr__(self) -> str:
        """Return the number of rows and where the files are."""
        where = "" if self.directory is None else f" in {self.directory}"
        return f"<{type(self).__name__} with {len(self)} rows{where}>"

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    @cached_property
    def content(self) -> Mapping[str, Any]:
        """The result itself, without its envelope: `ok`, `model`, `items`, `usage` and more, by task type.

        That of a task that was divided into shards is the merged one.
        """
        found = with_result_level(self.document)["result"]
        return found if isinstance(found, Mapping) else {}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows in order: items of a task with items, queries of a retrieval; none of a training.

        An item has `index` (its number in the whole task), `output` and `finish_reason`, or `error` if it failed.
        """
        return iter(self._rows)

    def to_pandas(self) -> pandas.DataFrame:
        """Return the rows as a DataFrame, one column for each key; a row without a key has NaN there.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        frame: pandas.DataFrame = _library("pandas").DataFrame.from_records(self._rows)
        return frame

    def to_arrow(self) -> pyarrow.Table:
        """Return the rows as an Arrow table, one column for each key; a row without a key has null there.

        A column whose values have no Arrow type in common becomes their JSON texts.

        Raises:
            MissingExtraError: pyarrow is not installed.
        """
        arrow = _library("pyarrow")
        names = dict.fromkeys(name for row in self._rows for name in row)
        table: pyarrow.Table = arrow.table(
            {name: _column(arrow, [row.get(name) for row in self._rows]) for name in names}
        )
        return table

    @property
    def metrics(self) -> dict[str, Any]:
        """Numbers of the whole task: of an inference its `usage` (tokens, requests), of a training its last metrics."""
        found: dict[str, Any] = {}
        for name in _NUMBERS:
            values = self.content.get(name)
            found |= values if isinstance(values, Mapping) else {}
        return found

    def metric_rows(self) -> Iterator[dict[str, Any]]:
        """Yield the metrics of a training as they were logged: `step` and numbers; none without `metrics.jsonl`."""
        path = self.files.get(METRICS)
        if path is not None:
            with path.open(encoding="utf-8") as file:
                yield from (json.loads(line) for line in file if line.strip())

    @cached_property
    def files(self) -> dict[str, Path]:
        """Files and folders that the task left, by name; empty if they are not on this machine.

        They are those of the manifest, or, of a folder without one, those beside `responses.json`.

        Raises:
            ArtifactError: The manifest cannot be read.
        """
        if self.directory is None:
            return {}
        manifest = read_manifest(self.directory)
        if manifest is None:
            return {path.name: path for path in sorted(self.directory.iterdir()) if path.name != RESPONSES}
        entries = {entry.path: self.directory / entry.path for entry in manifest.entries if entry.status == "present"}
        return {name.removeprefix("artifacts/"): path for name, path in entries.items() if path.exists()}

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        for name in _ROWS:
            rows = self.content.get(name)
            if isinstance(rows, list):
                return [row if isinstance(row, dict) else {"output": row} for row in rows]
        return []


def _column(arrow: ModuleType, values: list[Any]) -> Any:
    try:
        return arrow.array(values)
    except (arrow.ArrowInvalid, arrow.ArrowTypeError):  # texts beside numbers, or mappings beside lists
        return arrow.array([None if value is None else json.dumps(value, ensure_ascii=False) for value in values])


def _library(name: str) -> ModuleType:
    """Return a library that only those need who ask for its tables."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise MissingExtraError(f"{name} is not installed", hint=f"pip install {name}") from None
