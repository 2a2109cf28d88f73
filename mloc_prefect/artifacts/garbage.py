"""Finds garbage (old results, attempts of finished tasks, archives) by age and size, and removes it on request."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mloc_prefect.artifacts.layout import MANIFEST, attempt_dirs
from mloc_prefect.artifacts.trained_models import ARCHIVES
from mloc_prefect.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Kind = Literal["attempt", "archive", "result"]
DAY = 86400.0
_QUIET = 3600.0  # seconds; a task directory without a manifest that changed since may be in use


@dataclass(frozen=True, slots=True)
class GarbageItem:
    """One file or directory that may be removed.

    Attributes:
        path: File or directory.
        kind: `attempt` (of a finished task), `archive` (packed model or imported checkpoint), `result` (a whole task).
        size: Bytes.
        age: Seconds since its last change.
        reason: Why, as text.
    """

    path: Path
    kind: Kind
    size: int
    age: float
    reason: str


@dataclass(frozen=True, slots=True)
class GcReport:
    """The garbage that was found.

    Attributes:
        items: Files and directories.
        removed: Whether they were removed (False for a dry run).
        total: Bytes below the results root before the removal.
    """

    items: tuple[GarbageItem, ...]
    removed: bool
    total: int

    @property
    def freed(self) -> int:
        """Bytes of `items`."""
        return sum(i.size for i in self.items)


@dataclass(frozen=True, slots=True)
class _Task:
    directory: Path
    usual: Path
    finished: bool
    size: int
    changed: float


def collect(
    root: Path,
    *,
    max_age: float | None = 30 * DAY,
    max_bytes: int | None = None,
    dry_run: bool = True,
    now: float | None = None,
) -> GcReport:
    """Find garbage below the results root and, unless `dry_run`, remove it.

    Args:
        root: Results root.
        max_age: Seconds; older attempts, archives and results are removed. None: no limit.
        max_bytes: Above this size attempts of finished tasks are removed first, then archives, then the oldest results.
            None: no limit.
        dry_run: Only report.
        now: Current time, seconds since the epoch; default: the clock.

    Raises:
        ArtifactError: Something cannot be read or removed.
    """
    moment = time.time() if now is None else now
    try:
        tasks = [t for t in _tasks(root, moment) if t.finished or moment - t.changed > _QUIET]
        total = sum(_size(p) for p in root.iterdir() if not p.is_symlink()) if root.is_dir() else 0
        items = _by_age(tasks, max_age, moment)
        items += _by_size(tasks, items, total, max_bytes, moment)
        if not dry_run:
            _remove(items, tasks)
    except OSError as error:
        raise ArtifactError(f"cannot clean {error.filename or root}: {error.strerror or error}") from error
    return GcReport(tuple(items), not dry_run, total)


def _tasks(root: Path, now: float) -> Iterator[_Task]:
    for usual in sorted(root.iterdir()) if root.is_dir() else []:
        if usual.name.startswith(".") or not usual.is_dir():
            continue
        directory = usual.resolve() if usual.is_symlink() else usual
        if not (directory / MANIFEST).exists() and not (directory / "attempts").is_dir():
            continue  # not the directory of a task
        changed = max((p.stat().st_mtime for p in _recent(directory)), default=now)
        yield _Task(directory, usual, (directory / MANIFEST).exists(), _size(directory), changed)


def _recent(directory: Path) -> Iterator[Path]:
    yield directory
    yield from (p for p in directory.iterdir() if p.exists())
    for attempt in attempt_dirs(directory):
        yield attempt
        yield from (p for p in attempt.iterdir() if p.exists())


def _by_age(tasks: list[_Task], max_age: float | None, now: float) -> list[GarbageItem]:
    items: list[GarbageItem] = []
    for task in tasks if max_age is not None else ():
        if now - task.changed > (max_age or 0):
            items.append(GarbageItem(task.directory, "result", task.size, now - task.changed, "older than the limit"))
            continue
        items += [g for g in _parts(task, now, "older than the limit") if g.age > (max_age or 0)]
    return items


def _by_size(
    tasks: list[_Task], chosen: list[GarbageItem], total: int, max_bytes: int | None, now: float
) -> list[GarbageItem]:
    if max_bytes is None:
        return []
    removed = {g.path for g in chosen}
    left = total - sum(g.size for g in chosen)
    reason = f"more than {max_bytes} bytes of results"
    rest = [t for t in sorted(tasks, key=lambda t: t.changed) if t.directory not in removed]
    parts = [g for t in rest for g in _parts(t, now, reason) if g.path not in removed]
    extra: list[GarbageItem] = []
    for item in sorted(parts, key=lambda g: g.kind != "attempt"):  # attempts before archives
        if left > max_bytes:
            extra.append(item)
            left -= item.size
    for task in rest:
        if left > max_bytes:
            inside = [g for g in extra if g.path.is_relative_to(task.directory)]
            extra = [g for g in extra if g not in inside]
            extra.append(GarbageItem(task.directory, "result", task.size, now - task.changed, reason))
            left -= task.size - sum(g.size for g in inside)
    return extra


def _parts(task: _Task, now: float, reason: str) -> list[GarbageItem]:
    """Return what can be removed while the result stays: only of finished tasks, whose rows are not needed again."""
    if not task.finished:
        return []
    found: list[tuple[Path, Kind]] = [(p, "attempt") for p in attempt_dirs(task.directory)]
    found += [(p, "archive") for p in sorted(task.directory.rglob("*")) if p.is_file() and p.name.endswith(ARCHIVES)]
    imported = task.directory / "imported_checkpoint"
    found += [(imported, "archive")] if imported.is_dir() else []
    tops = [(p, k) for p, k in found if not any(q in p.parents for q, _ in found)]
    return [GarbageItem(p, kind, _size(p), now - p.stat().st_mtime, reason) for p, kind in tops]


def _remove(items: list[GarbageItem], tasks: list[_Task]) -> None:
    links = {t.directory: t.usual for t in tasks}
    for item in items:
        if item.path.is_dir():
            shutil.rmtree(item.path)
        else:
            item.path.unlink(missing_ok=True)
        usual = links.get(item.path)
        if usual is not None and usual.is_symlink():
            usual.unlink()


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.lstat().st_size
    return sum(p.lstat().st_size for p in path.rglob("*") if not p.is_dir())
