"""Writes the result object of an attempt: streamed, then renamed into place. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from mloc_prefect.execution.wire import EVENT_LIMIT, dumps, to_bytes
from mloc_prefect.process.atomic_file import replacing

RESULT = "result.json"


def write_result(attempt_dir: Path, result: Mapping[str, Any]) -> Path:
    """Write `result` as `<attempt_dir>/result.json` and return its path.

    Iterators, at any depth of mappings, are written as arrays, one element at a time. Keys that start with `_` are left
    out.

    Raises:
        TypeError: A value has no JSON form; the message names its key.
        OSError: The file could not be written.
    """
    path = attempt_dir / RESULT
    with replacing(path) as out:
        _write(out, {k: v for k, v in result.items() if not str(k).startswith("_")}, "result")
    return path


def summary_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of `result` for displays: `_summary`, and `model` and `usage` if present."""
    summary = {key: result[key] for key in ("model", "usage") if key in result}
    summary.update(result.get("_summary") or {})
    size = len(to_bytes(dumps(summary)))
    return summary if size <= EVENT_LIMIT else {"note": f"summary of {size} bytes left out"}


def _write(out: IO[bytes], value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        _write_mapping(out, value, where)
    elif isinstance(value, Iterator):
        out.write(b"[")
        for number, element in enumerate(value):
            out.write(b", " if number else b"")
            _write_plain(out, element, f"{where}[{number}]")
        out.write(b"]")
    else:
        _write_plain(out, value, where)


def _write_plain(out: IO[bytes], value: Any, where: str) -> None:
    try:
        out.write(to_bytes(dumps(value)))
    except TypeError as error:
        raise TypeError(f"{where}: {error}") from None


def _write_mapping(out: IO[bytes], value: Mapping[Any, Any], where: str) -> None:
    out.write(b"{")
    for number, (key, inner) in enumerate(value.items()):
        out.write((b", " if number else b"") + to_bytes(dumps(str(key))) + b": ")
        _write(out, inner, f"{where}.{key}")
    out.write(b"}")
