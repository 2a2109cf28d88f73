"""Guards `responses.json` of a task: one writer at a time, and none once the task is finished.

A result can come from the stage runner, from a client of the endpoint, or from an upload of that name. Each of them
holds the lock of the task while it looks at what is there and writes, so that the digest in the manifest stays true and
no result replaces another one unnoticed.
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from mloc_prefect.artifacts import atomic
from mloc_prefect.artifacts.layout import MANIFEST, POSTED, RESPONSES
from mloc_prefect.artifacts.manifest import Manifest, commit_manifest, survey
from mloc_prefect.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from pathlib import Path

_log = logging.getLogger(__name__)
_LOCK = ".result.lock"
_POLL_SECONDS = 0.02


@contextmanager
def result_lock(directory: Path) -> Iterator[None]:
    """Hold the lock of a task's result; waits until it is free. For threads.

    Raises:
        ArtifactError: The lock file cannot be written.
    """
    lock = _lock_of(directory)
    while not _taken(lock, directory, seconds=-1):
        continue
    try:
        yield
    finally:
        lock.release()


@asynccontextmanager
async def async_result_lock(directory: Path) -> AsyncIterator[None]:
    """Hold the lock of a task's result; waits until it is free.

    Raises:
        ArtifactError: The lock file cannot be written.
    """
    lock = _lock_of(directory)
    while not _taken(lock, directory, seconds=0):
        await asyncio.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()


def is_committed(directory: Path) -> bool:
    """Return whether the task has a manifest, so that its result is final."""
    return (directory / MANIFEST).exists()


def note_posted(directory: Path) -> None:
    """Note that the present `responses.json` was posted by a client: the stage runner then keeps it.

    Raises:
        ArtifactError: The note cannot be written.
    """
    atomic.write_json(directory / POSTED, list(atomic.digest(directory / RESPONSES)), indent=None)


def is_posted(directory: Path) -> bool:
    """Return whether the present `responses.json` is one that a client has posted."""
    try:
        return bool(tuple(atomic.read_json(directory / POSTED)) == atomic.digest(directory / RESPONSES))
    except (FileNotFoundError, ArtifactError, TypeError):
        return False


def commit_posted(directory: Path, *, task_id: str, name: str) -> None:
    """Commit a posted result whose task never runs here; nothing happens if there is none, or another was committed.

    The stage runner does this for tasks that it had begun.

    Args:
        directory: Directory of the task.
        task_id: Its id.
        name: `metadata.name`.

    Raises:
        ArtifactError: It cannot be written.
    """
    if not directory.is_dir():  # the endpoint keeps its results elsewhere
        return
    with result_lock(directory):
        if is_posted(directory):
            commit_manifest(directory, posted_manifest(directory, task_id=task_id, name=name))


def posted_manifest(
    directory: Path,
    *,
    task_id: str,
    name: str,
    spec_sha256: str = "",
    run_count: int = 0,
    required: Iterable[str] = (),
) -> Manifest:
    """Return the manifest of the `responses.json` that was posted; see `Manifest` for the arguments.

    Without a run, nobody has resolved the spec: its digest is "".
    """
    engine = "outside"
    return Manifest(
        task_id=task_id,
        generated_at=datetime.now(UTC).isoformat(),
        entries=survey(directory, result=atomic.digest(directory / RESPONSES), required=required),
        spec_sha256=spec_sha256,
        attempt=0,
        run_count=run_count,
        engine=engine,
        summary={"engine": engine},
        name=name,
    )


def holds_result(directory: Path, result: Any) -> bool:
    """Return whether `responses.json` has this result, in an envelope or bare."""
    try:
        found = json.loads((directory / RESPONSES).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return bool(found == result or (isinstance(found, dict) and found.get("result") == result))


def _lock_of(directory: Path) -> FileLock:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        mode = 0o666 & directory.stat().st_mode & 0o770  # as other files in it
    except OSError as error:
        raise ArtifactError(f"cannot write {directory}: {error.strerror or error}") from error
    # The thread that takes it need not be the one that gives it back.
    return FileLock(directory / _LOCK, mode=mode, thread_local=False)


def _taken(lock: FileLock, directory: Path, *, seconds: float) -> bool:
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    except NotImplementedError:  # a file system without locks: as good as before
        _log.debug("%s: no locks on this file system", directory)
    except OSError as error:
        raise ArtifactError(f"cannot write {directory}: {error.strerror or error}") from error
    return True
