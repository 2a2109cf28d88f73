"""Task and worker records as lines and plain tables."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mloc_prefect.cli.display.run_progress import one_line
from mloc_prefect.cli.display.units import age_text, size_text
from mloc_prefect.client.task_lookup import label, short
from mloc_prefect.diagnostics.printable import printable_line
from mloc_prefect.execution.host.progress_meter import duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TASK_HEAD = ("ID", "NAME", "TYPE", "STATE", "WORKER", "AGE", "NOTE")
WORKER_HEAD = ("ID", "STATE", "CORES", "MEMORY", "GPUS", "TAGS", "HELD", "WARM", "RUNS", "SEEN")

_NOTE = 60  # characters
_FEW = 3


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return left-aligned columns, two spaces apart; an empty list for no rows."""
    if not rows:
        return []
    lines = [[printable_line(cell) for cell in line] for line in ([head, *rows] if head else rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def task_row(record: Mapping[str, Any], *, now: float | None = None) -> list[str]:
    """Return the cells of a task in `mloc list`; `now` is seconds since the epoch."""
    attempt = record.get("attempts") or 0
    state = str(record["status"])
    return [
        short(record["task_id"]),
        label(dict(record)),
        str(record.get("task_type") or _task_type(record)),
        f"{state} #{attempt}" if attempt > 1 else state,
        str(record.get("assigned_worker") or ""),
        _age(record.get("submitted_at"), now),
        note(record),
    ]


def record_lines(record: Mapping[str, Any]) -> list[str]:
    """Return the lines of `mloc status` for a task."""
    facts = {
        "task": record["task_id"],
        "name": label(dict(record)),
        "submission": record.get("submission_id"),
        "type": record.get("task_type") or _task_type(record),
        "state": record["status"],
        "attempts": f"{record['attempts']} of {record['max_attempts']}" if record.get("max_attempts") else None,
        "worker": record.get("assigned_worker"),
        "waits for": ", ".join(map(str, record.get("depends_on") or [])),
        "submitted": record.get("submitted_at"),
        "ran": _ran(record),
        "next try": record.get("next_retry_at"),
        "error": one_line(record.get("error") or ""),
    }
    return [f"{name:<10}  {printable_line(str(value))}" for name, value in facts.items() if value]


def _worker_state(worker: Mapping[str, Any], now_there: Mapping[str, Any]) -> str:
    if worker.get("stale"):
        return "GONE"
    if now_there.get("problem"):  # it does not see the results root; `--json` has the whole text
        return "NO ROOT"
    return "OFF" if worker.get("elastic_disabled") else str(worker.get("status"))


def worker_row(worker: Mapping[str, Any], *, now: float | None = None) -> list[str]:
    """Return the cells of a worker in `mloc workers`; `now` is seconds since the epoch."""
    hardware = worker.get("hardware") or {}
    memory = (hardware.get("memory") or {}).get("total_bytes")
    gone = bool(worker.get("stale"))
    now_there = {} if gone else worker.get("at_work") or {}
    models = [] if gone else now_there.get("models") or worker.get("cached_models") or []
    return [
        str(worker["worker_id"]),
        _worker_state(worker, now_there),
        str((hardware.get("cpu") or {}).get("logical_cores") or ""),
        size_text(memory) if isinstance(memory, int | float) else "",
        _gpus((hardware.get("gpu") or {}).get("gpus") or []),
        ",".join(map(str, worker.get("tags") or [])),
        _few([f"{','.join(lease['devices'])} {lease['holder']}" for lease in now_there.get("leases") or []]),
        _few([_model(str(model)) for model in models]),
        str(len(now_there.get("runs") or []) or ""),
        _age(worker.get("last_seen"), now),
    ]


def note(record: Mapping[str, Any]) -> str:
    """Return why a task waits or failed, shortened."""
    text = one_line(record.get("error") or "")
    return text if len(text) <= _NOTE else text[: _NOTE - 1] + "…"


def _model(name: str) -> str:
    """Return a model identifier unchanged, and the last component of a path."""
    return name.rstrip("/").rsplit("/", 1)[-1] if name.startswith(("/", ".", "~")) or "://" in name else name


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")


def _gpus(gpus: Sequence[Any]) -> str:
    names = [str(gpu.get("name", "?")) if isinstance(gpu, dict) else "?" for gpu in gpus]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def _task_type(record: Mapping[str, Any]) -> str:
    spec = (record.get("parsed") or {}).get("spec")
    return str(spec.get("taskType", "")) if isinstance(spec, dict) else ""


def _ran(record: Mapping[str, Any]) -> str | None:
    started, finished = record.get("started_ts"), record.get("finished_ts")
    return duration(finished - started) if started and finished else None


def _age(iso: Any, now: float | None) -> str:
    try:
        then = datetime.fromisoformat(str(iso)).timestamp()
    except ValueError:
        return ""
    return age_text((datetime.now(UTC).timestamp() if now is None else now) - then)
