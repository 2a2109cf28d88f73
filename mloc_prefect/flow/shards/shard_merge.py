"""Merges the results of shards into that of the whole task. [protocol 2.7].

`{"shards": [<envelope of each>], "merged": {"items": [...], "usage": {...}, "model": ...}}` in an envelope of its own,
as clients of MLOC expect it; written as a stream: at most one shard's result is in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts import atomic
from mloc_prefect.artifacts.layout import RESPONSES
from mloc_prefect.errors import ArtifactError, ExecutionError
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.execution.result_file import write_result
from mloc_prefect.executors.common.jsonl_export import ExportWriter
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.plan.shard_ranges import MULTI

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mloc_prefect.artifacts.manifest import Manifest
    from mloc_prefect.execution.protocol import ExecutionRequest


@dataclass(frozen=True, slots=True)
class FinishedShard:
    """A shard whose result is committed.

    Attributes:
        task_id: Its task id.
        directory: Its task directory.
        manifest: Its manifest.
    """

    task_id: str
    directory: Path
    manifest: Manifest

    def envelope(self) -> dict[str, Any]:
        """Return its result as an endpoint stores it. [protocol 1.4].

        Raises:
            ArtifactError: The file is not there, or is no JSON.
        """
        content = atomic.read_json(self.directory / RESPONSES)
        if isinstance(content, Mapping) and "result" in content and "task_id" in content:
            return dict(content)
        return {
            "task_id": self.task_id,
            "worker_id": self.manifest.summary.get("worker"),
            "metadata": {},
            "received_at": self.manifest.generated_at,
            "result": content,
        }

    def result(self) -> Mapping[str, Any]:
        """Return its result object."""
        found = self.envelope()["result"]
        return found if isinstance(found, Mapping) else {}


def check_mergeable(request: ExecutionRequest) -> None:
    """Return if the spec allows a merged result.

    Raises:
        ExecutionError: `postprocess.jsonl_export` is not valid; not retryable.
    """
    _export(request)


def merge(shards: Sequence[FinishedShard], request: ExecutionRequest, rows: int | None) -> tuple[Path, dict[str, Any]]:
    """Write the result of the whole task into its attempt directory.

    Args:
        shards: All shards, in row order.
        request: The whole task.
        rows: How many rows it has, when that is known.

    Returns:
        Path of the envelope with the result, and facts for displays.

    Raises:
        ExecutionError: More rows failed than the task allows, or rows are missing; not retryable.
        ArtifactError: A result cannot be read or written.
    """
    try:
        return _merge(shards, request, rows)
    except OSError as error:
        raise ArtifactError(f"cannot write the merged result of {request.task_id}: {error}") from error


def _merge(shards: Sequence[FinishedShard], request: ExecutionRequest, rows: int | None) -> tuple[Path, dict[str, Any]]:
    _check_failures(shards, request)
    facts = _Facts()
    for shard in shards:
        facts.add(shard.result())
    if rows is not None and facts.rows != rows:
        message = f"the {len(shards)} shards gave {facts.rows} of {rows} rows"
        raise ExecutionError(message, retryable=False, hint="workers of another implementation may divide data again")
    merged: dict[str, Any] = {"items": _items(shards), **facts.shown()}
    if facts.engines:
        merged["engine"] = facts.engines[0] if len(facts.engines) == 1 else facts.engines
    export = _export(request)
    if export is not None:
        notes: list[str] = []
        try:
            merged["jsonl_export"] = export.write(_items(shards), notes)
        except UserError as error:
            raise ExecutionError(str(error), retryable=False) from None
        merged |= {"notes": notes} if notes else {}
    result = {"shards": (shard.envelope() for shard in shards), "merged": merged}
    summary = {"shards": len(shards), "rows": facts.rows, **facts.shown()}
    engines = dict.fromkeys(shard.manifest.engine for shard in shards if shard.manifest.engine)
    whys = dict.fromkeys(str(engine["why"]) for engine in facts.engines if engine.get("why"))
    chosen = {"engine": ", ".join(engines) or None, **({"why": "; ".join(whys)} if whys else {})}
    envelope = {
        "task_id": request.task_id,
        "worker_id": MULTI,
        "metadata": {"aggregated": True, "shards": len(shards)},
        "received_at": datetime.now(UTC).isoformat(timespec="microseconds"),
        "result": result,
    }
    return write_result(Path(request.attempt_dir), envelope), {**chosen, **summary}


class _Facts:
    """Facts about all items together."""

    def __init__(self) -> None:
        self.rows = 0
        self._usage: dict[str, float] = {}
        self.engines: list[Mapping[str, Any]] = []
        self._models: dict[str, None] = {}
        self._has_usage = False

    def add(self, result: Mapping[str, Any]) -> None:
        """Count one shard."""
        items, usage = result.get("items"), result.get("usage")
        self.rows += len(items) if isinstance(items, list) else 0
        if isinstance(usage, Mapping):
            self._has_usage = True
            for name, value in usage.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    self._usage[name] = self._usage.get(name, 0) + value
        engine = result.get("engine")
        if isinstance(engine, Mapping) and engine not in self.engines:
            self.engines.append(engine)
        if result.get("model") is not None:
            self._models[str(result["model"])] = None

    def shown(self) -> dict[str, Any]:
        """Return `usage` and `model`, each only when a shard has it; several models are a list."""
        found: dict[str, Any] = {}
        if self._has_usage:
            found["usage"] = {n: int(v) if float(v).is_integer() else v for n, v in self._usage.items()}
        models = list(self._models)
        return {**found, "model": models[0] if len(models) == 1 else models} if models else found


def _items(shards: Sequence[FinishedShard]) -> Iterator[Any]:
    for shard in shards:
        items = shard.result().get("items")
        yield from items if isinstance(items, list) else ()


def _export(request: ExecutionRequest) -> ExportWriter | None:
    try:
        return ExportWriter.of(
            SpecReader(request.spec, "spec"), Path(request.task_dir), request.settings.get("base_url")
        )
    except UserError as error:
        raise ExecutionError(str(error), retryable=False) from None


def _check_failures(shards: Sequence[FinishedShard], request: ExecutionRequest) -> None:
    """Refuse more failed rows in all shards together than the task allows; each shard has checked its own."""
    failed = sum(int(shard.manifest.summary.get("failed_rows") or 0) for shard in shards)
    allowed = SpecReader(request.spec, "spec").child("inference").integer("max_failed_rows", 0) if failed else 0
    if failed > allowed:
        message = f"{failed} rows failed in the {len(shards)} shards (inference.max_failed_rows is {allowed})"
        raise ExecutionError(message, retryable=False)
