"""Ends a stage: delivers, commits and publishes its result, and finds results of earlier runs.

`responses.json` is written before an http delivery (protocol 4.8). The exclusive creation of `manifest.json` is the
commit; the process that created it publishes the result, so that a late writer changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts import atomic
from mloc_prefect.artifacts.layout import RESPONSES, attempt_dirs
from mloc_prefect.artifacts.manifest import Manifest, commit_manifest, read_manifest, supersede, survey
from mloc_prefect.artifacts.result_guard import async_result_lock, is_posted, posted_manifest
from mloc_prefect.artifacts.transfer.artifact_upload import upload_files
from mloc_prefect.artifacts.transfer.delivery import HttpDestination, deliver
from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts
from mloc_prefect.artifacts.transfer.store_destination import StoreDestination, store_result
from mloc_prefect.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mloc_prefect.flow.fencing import RunFence

_COMPUTED = "computed.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputedResult:
    """A computed result, committed or not.

    Attributes:
        spec_sha256: Digest of the work, see `work_digest`.
        attempt_dir: Name of the attempt's directory below `attempts/`.
        attempt: Attempt of the stage.
        run_count: Start of the root run.
        path: Absolute path of the result object.
        summary: Facts for displays.
        delivered: The worker has stored and delivered it itself.
        envelope: The file holds the whole envelope.
    """

    spec_sha256: str
    attempt_dir: str
    attempt: int
    run_count: int
    path: str
    summary: dict[str, Any] = field(default_factory=dict)
    delivered: bool = False
    envelope: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultCommitter:
    """Commits one stage.

    Attributes:
        directory: Task directory.
        task_id: Id of the task.
        name: `metadata.name` of the task.
        required: Names in `spec.output.artifacts`.
        destination: Where else the result goes, or None.
        allowed: Hosts that may be named.
        fence: Says whether this process may still commit.
        stage_run: Flow run of the stage, sent to the destination: our own endpoint then knows that the result comes
            from the stage itself and does not end the task by it.
    """

    directory: Path
    task_id: str
    name: str
    required: Sequence[str]
    destination: HttpDestination | StoreDestination | None
    allowed: AllowedHosts
    fence: RunFence
    stage_run: str | None = None

    def finished(self, spec_sha256: str) -> Manifest | None:
        """Return the manifest if the stage is done for exactly this spec; move that of another spec aside.

        Raises:
            ArtifactError: The manifest cannot be read.
        """
        manifest = read_manifest(self.directory)
        if manifest is None:
            return None
        if manifest.spec_sha256 != spec_sha256 or not self._restored(manifest):
            supersede(self.directory)
            return None
        return manifest

    def keep(self, computed: ComputedResult) -> None:
        """Record a computed result, so that a failed delivery does not cause another computation."""
        if self.destination is not None:
            atomic.write_json(self.directory / "attempts" / computed.attempt_dir / _COMPUTED, asdict(computed))

    def kept(self, spec_sha256: str) -> ComputedResult | None:
        """Return the newest computed result for exactly this spec, which only has to be delivered."""
        for attempt in attempt_dirs(self.directory) if self.destination is not None else ():
            try:
                found = ComputedResult(**atomic.read_json(attempt / _COMPUTED))
            except (FileNotFoundError, TypeError):
                continue
            if found.spec_sha256 == spec_sha256 and Path(found.path).is_file():
                return found
        return None

    async def commit(
        self, computed: ComputedResult, *, worker_id: str, warn: Callable[[str], object] = _log.warning
    ) -> Manifest:
        """Deliver and commit a result; return the valid manifest (another process may have been first).

        Args:
            computed: The result.
            worker_id: Worker that computed it, for the delivery.
            warn: Called for each file that the destination refuses; the result is delivered without its URL.

        Raises:
            DeliveryError: The destination did not take the result.
            StaleRunError: The run was started again.
            ArtifactError: Files cannot be written.
        """
        result = Path(computed.path)
        await self.fence.check()
        published = computed.delivered
        if published:
            pass
        elif isinstance(self.destination, StoreDestination):
            await asyncio.to_thread(store_result, self.destination, self.task_id, result, self.directory)
            await self.fence.check()
        elif self.destination is not None:
            for problem in await upload_files(
                result, self.destination, task_id=self.task_id, allowed=self.allowed, folder=self.directory
            ):
                warn(problem)
            async with async_result_lock(self.directory):
                if is_posted(self.directory):
                    return self._adopt(computed.spec_sha256, computed.run_count)
                self._publish(result)
            await deliver(
                self.destination,
                task_id=self.task_id,
                result=result,
                worker_id=worker_id,
                allowed=self.allowed,
                stage_run=self.stage_run,
                envelope=computed.envelope,
            )
            await self.fence.check()
            published = True  # an endpoint that shares our results root has made it an envelope [protocol 1.4]
        async with async_result_lock(self.directory):
            if not computed.delivered and is_posted(self.directory):
                return self._adopt(computed.spec_sha256, computed.run_count)
            digest = atomic.digest(self.directory / RESPONSES if published else result)
            manifest = self._manifest(computed, digest)
            if not commit_manifest(self.directory, manifest):
                return self._other(computed.spec_sha256)
            if not published:
                self._publish(result)
        return manifest

    async def adopt(self, spec_sha256: str, run_count: int) -> Manifest:
        """Commit a `responses.json` that was stored from outside; return the valid manifest.

        Raises:
            ArtifactError: There is no such file, or the manifest cannot be written.
        """
        async with async_result_lock(self.directory):
            return self._adopt(spec_sha256, run_count)

    def _adopt(self, spec_sha256: str, run_count: int) -> Manifest:
        path = self.directory / RESPONSES
        if not path.is_file():
            raise ArtifactError(
                f"task {self.task_id} was completed from outside, but its result is not at {path}",
                hint="endpoint and workers must share one results root (MLOC_RESULTS_DIR)",
            )
        manifest = posted_manifest(
            self.directory,
            task_id=self.task_id,
            name=self.name,
            spec_sha256=spec_sha256,
            run_count=run_count,
            required=self.required,
        )
        return manifest if commit_manifest(self.directory, manifest) else self._other(spec_sha256)

    def _publish(self, result: Path) -> tuple[int, str]:
        return atomic.copy(result, self.directory / RESPONSES)

    def _manifest(self, computed: ComputedResult, digest: tuple[int, str]) -> Manifest:
        return Manifest(
            task_id=self.task_id,
            generated_at=datetime.now(UTC).isoformat(),
            entries=survey(self.directory, result=digest, required=self.required),
            spec_sha256=computed.spec_sha256,
            attempt=computed.attempt,
            run_count=computed.run_count,
            attempt_dir=f"attempts/{computed.attempt_dir}",
            engine=computed.summary.get("engine"),
            summary=computed.summary,
            name=self.name,
        )

    def _other(self, spec_sha256: str) -> Manifest:
        manifest = read_manifest(self.directory)
        if manifest is None or manifest.spec_sha256 != spec_sha256:
            raise ArtifactError(f"another run committed task {self.task_id} with another spec at the same time")
        return manifest

    def _restored(self, manifest: Manifest) -> bool:
        """Return whether `responses.json` is as committed; the process may have ended just before publishing it."""
        entry, path = manifest.entry(RESPONSES), self.directory / RESPONSES
        if entry is None:
            return False
        # The size is not enough: an older result of the same length may still be there.
        committed = (entry.size, entry.sha256)
        if path.is_file() and path.stat().st_size == entry.size and atomic.digest(path) == committed:
            return True
        source = self.directory / manifest.attempt_dir / "result.json"
        if not source.is_file() or atomic.digest(source) != committed:
            return False
        self._publish(source)
        return True
