"""A stage's attempt as files of its directory: how it reaches a worker elsewhere, and how its outcome comes back.

`job.json` says what to do, `events.jsonl` what happened so far, `outcome.json` how it ended. Coordinator and workers
share the results root, so no part of a spec goes through Prefect's parameters.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from mloc_prefect.artifacts import atomic
from mloc_prefect.errors import ArtifactError, DispatchError, ExecutionError, ExecutionFailure, MlocError
from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionRequest, ExecutionResult
from mloc_prefect.flow.dispatcher import StageJob
from mloc_prefect.plan.resources import ResourceRequest
from mloc_prefect.process.atomic_file import write_whole
from mloc_prefect.tasks.base import ExecutorRef

if TYPE_CHECKING:
    from types import TracebackType

JOB, EVENTS, OUTCOME = "job.json", "events.jsonl", "outcome.json"
_LINE_LIMIT = 1 << 20
_ERRORS: dict[str, type[MlocError]] = {"dispatch": DispatchError, "artifact": ArtifactError}


def write_job(job: StageJob) -> Path:
    """Write `job.json` into the attempt's directory, not readable by other users, and return that directory.

    Raises:
        ArtifactError: It cannot be written.
    """
    directory = Path(job.request.attempt_dir)
    data = {f.name: getattr(job, f.name) for f in fields(job)}
    data |= {
        "request": job.request.to_wire(),
        "executor": asdict(job.executor),
        "resources": asdict(job.resources),
    }
    text = json.dumps(data, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / JOB, text, mode=0o660, durable=True)  # before the umask, see `private_files`
    except OSError as error:
        raise ArtifactError(f"cannot write {directory / JOB}: {error.strerror}") from error
    return directory


def read_job(directory: Path) -> StageJob:
    """Return the job of an attempt.

    Raises:
        ArtifactError: It is not there or cannot be read.
    """
    path = directory / JOB
    try:
        data = json.loads(path.read_text("utf-8", "surrogatepass"))
        known = {f.name: data[f.name] for f in fields(StageJob) if f.name in data}
        known |= {
            "request": ExecutionRequest.from_wire(data["request"]),
            "executor": _executor(data["executor"]),
            "resources": ResourceRequest(**{**data["resources"], "tags": tuple(data["resources"].get("tags", ()))}),
            "avoid": tuple(data.get("avoid", ())),
        }
        return StageJob(**known)
    except FileNotFoundError:
        hint = "coordinator and workers must share one results root (MLOC_RESULTS_DIR), under the same path"
        raise ArtifactError(f"there is no {path} here", hint=hint) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error


def _executor(data: dict[str, Any]) -> ExecutorRef:
    known = {k: v for k, v in data.items() if k in ExecutorRef.__dataclass_fields__}
    options = known.get("options")
    return ExecutorRef(
        **{
            **known,
            "imports": tuple(known.get("imports", ())),
            "refuses": tuple(known.get("refuses", ())),
            "options": None if options is None else tuple(options),
            "preferred": tuple(_executor(better) for better in known.get("preferred", ())),
        }
    )


@dataclass(frozen=True, slots=True)
class AttemptOutcome:
    """How an attempt ended elsewhere.

    Attributes:
        worker: Where.
        result: Its result, or None.
        error: What to raise, or None.
    """

    worker: str
    result: ExecutionResult | None = None
    error: MlocError | None = None


def write_outcome(directory: Path, outcome: AttemptOutcome) -> None:
    """Write `outcome.json`.

    Raises:
        ArtifactError: It cannot be written.
    """
    error = outcome.error
    data: dict[str, Any] = {"worker": outcome.worker}
    if outcome.result is not None:
        data["result"] = asdict(outcome.result)
    if error is not None:
        failure = error.failure if isinstance(error, ExecutionError) else None
        data["error"] = {
            "kind": next((k for k, kind in _ERRORS.items() if isinstance(error, kind)), "execution"),
            "message": error.message,
            "hint": error.hint,
            "retryable": getattr(error, "retryable", True),
            "failure": failure.to_wire() if failure else None,
        }
    atomic.write_json(directory / OUTCOME, data)


def read_outcome(directory: Path) -> AttemptOutcome | None:
    """Return how an attempt ended, or None while it has not.

    Raises:
        ArtifactError: The file cannot be read.
    """
    try:
        data = json.loads((directory / OUTCOME).read_text("utf-8", "surrogatepass"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read {directory / OUTCOME}: {error}") from error
    if data.get("result"):
        return AttemptOutcome(data["worker"], result=ExecutionResult(**data["result"]))
    return AttemptOutcome(data["worker"], error=_error(data["error"]))


def _error(data: dict[str, Any]) -> MlocError:
    if data["kind"] in _ERRORS:
        return _ERRORS[data["kind"]](data["message"], hint=data["hint"])
    failure = ExecutionFailure.from_wire(data["failure"]) if data["failure"] else None
    return ExecutionError(data["message"], retryable=data["retryable"], hint=data["hint"], failure=failure)


class EventWriter:
    """Appends events to `events.jsonl`, each line whole and visible to readers at once; a context manager."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / EVENTS
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self._file = self._path.open("ab", buffering=0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, event: ExecutionEvent) -> None:
        """Append one event; an event longer than 1 MiB is left out."""
        line = json.dumps([event.kind, event.data, event.ts], ensure_ascii=False, default=str)
        data = line.encode("utf-8", "surrogatepass") + b"\n"
        if self._file is not None and len(data) <= _LINE_LIMIT:
            self._file.write(data)


class EventReader:
    """Reads `events.jsonl` while it grows."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / EVENTS
        self._offset = 0

    def read(self) -> list[ExecutionEvent]:
        """Return the events since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [_event(line) for line in whole.splitlines()]


def _event(line: bytes) -> ExecutionEvent:
    try:
        kind, data, ts = json.loads(line)
        return ExecutionEvent(kind, data, ts)
    except (ValueError, TypeError) as error:
        return ExecutionEvent("log", {"message": f"unreadable event: {error}", "level": "warning"}, time.time())
