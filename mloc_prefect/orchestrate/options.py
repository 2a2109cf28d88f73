"""How a plan is run: everything that is not in the plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, UUID, uuid5

from mloc_prefect.orchestrate.watch import ManifestWatch
from mloc_prefect.settings import MlocSettings, get_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.orchestrate.dispatch import StageDispatcher
    from mloc_prefect.orchestrate.observer import RunObserver
    from mloc_prefect.orchestrate.watch import TaskWatch
    from mloc_prefect.plan.model import WorkflowPlan


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of one run.

    Attributes:
        settings: Settings in force; default: read now.
        results_root: Root of task results; default: that of the settings.
        dispatcher: Who runs stages; None: that of `use_dispatcher`, else an own pool for the length of the run.
        observer: Who is told how it goes, or None.
        params: Values of `${param.NAME}`.
        submission_id: Id under which stages are reused; None: the id of the root flow run.
        task_ids: Ids of the tasks by stage key; None: made from the submission id.
        base_dir: Directory that relative paths of data and models start from.
        loopback: Whether results may be delivered to this machine.
        strict: Whether warnings of executors, such as a model that will hardly fit, end the stage.
        watch: Who knows of tasks from outside (records, tasks of other submissions); None: the manifests below `root`.
        shown: What Prefect shows as parameters of a root run made from a plan; the bridge finds the spec there.
    """

    settings: MlocSettings = field(default_factory=get_settings)
    results_root: Path | None = None
    dispatcher: StageDispatcher | None = None
    observer: RunObserver | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    submission_id: str | None = None
    task_ids: Mapping[str, str] | None = None
    base_dir: Path = field(default_factory=Path.cwd)
    loopback: bool = True
    strict: bool = False
    watch: TaskWatch | None = None
    shown: Mapping[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """Absolute results root."""
        return (self.results_root or self.settings.results_root).expanduser().absolute()

    @property
    def task_watch(self) -> TaskWatch:
        """The watch in force."""
        return self.watch or ManifestWatch(self.root)

    def ids(self, plan: WorkflowPlan, flow_run_id: str) -> dict[str, str]:
        """Return the task id of each stage key: the given one, else uuid5(submission or root flow run, key)."""
        space = _namespace(self.submission_id or flow_run_id)
        given = self.task_ids or {}
        return {s.key: given.get(s.key) or str(uuid5(space, s.key)) for s in plan.stages}


def _namespace(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        return uuid5(NAMESPACE_URL, f"mloc-submission:{text}")
